//! SIGTERM and SIGINT: the first is a request, the second ends the process at once.

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The request to end, as a flag to ask and as an event to wait for.
#[derive(Debug)]
pub struct Signals {
    interrupted: Arc<AtomicBool>,
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Takes the signals over from the kernel's defaults.
    pub fn new() -> io::Result<Signals> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: with the flag set by an earlier signal, the default comes before it is set again.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&interrupted))?;
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let (reader, writer) = UnixStream::pair()?;
        let delivery = SignalDelivery::with_pipe(reader, OwnedFd::from(writer), SignalOnly, [SIGTERM, SIGINT])?;
        Ok(Signals { interrupted, delivery })
    }

    /// Makes the signals events of a loop.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.delivery.get_read_mut(), token, Interest::READABLE)
    }

    /// Takes up what made the event.
    pub fn drain(&mut self) {
        self.delivery.pending().for_each(drop);
    }

    /// Whether the end was asked for.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The flag itself, for those who wait elsewhere.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }
}
