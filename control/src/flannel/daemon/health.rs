//! `/healthz` and `/readyz`, for a kubelet or a load balancer: flannel's paths, codes and texts.
//!
//! One thread accepts, one more per connection answers one request and closes. Requests are bounded in size, time and number,
//! so that nobody who connects can keep the answers from others for long.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tracing::debug;

/// Longest request, bytes.
const REQUEST_LEN_MAX: usize = 8 * 1024;
/// Header fields of a request at most.
const HEADERS_MAX: usize = 64;
/// Longest wait for a request, and for an answer to be taken.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that are answered at one time; more are closed at once.
const CONNECTIONS_MAX: usize = 32;
/// Pause after an accept that failed, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether the daemon is ready, as others are told.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// From now on it is, or is not.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves until the process ends. Returns the address, which matters if the port asked for was 0.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve(address: SocketAddr, ready: Ready) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let connections = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("health".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            if connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
                connections.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let (ready, done) = (ready.clone(), Arc::clone(&connections));
            let answering = thread::Builder::new().name("health answer".into()).spawn(move || {
                if let Err(error) = answer(stream, &ready) {
                    debug!("health server: {error}");
                }
                done.fetch_sub(1, Ordering::AcqRel);
            });
            if answering.is_err() {
                connections.fetch_sub(1, Ordering::AcqRel);
            }
        }
    })?;
    Ok(address)
}

fn answer(mut stream: TcpStream, ready: &Ready) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let (status, body) = match read_path(&mut stream)? {
        Some(path) => response(&path, ready.get()),
        None => ("400 Bad Request", "this is no HTTP request"),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// Reads a request and gives its path without a query; `None`: it is none.
fn read_path(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let len = stream.read(&mut chunk)?;
        bytes.extend_from_slice(&chunk[..len]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&bytes) {
            Ok(httparse::Status::Complete(_)) => {
                let path = request.path.unwrap_or_default();
                return Ok(Some(path.split('?').next().unwrap_or_default().to_owned()));
            }
            Ok(httparse::Status::Partial) if len > 0 && bytes.len() < REQUEST_LEN_MAX => {}
            _ => return Ok(None),
        }
    }
}

/// Status line and body, as flannel has them.
fn response(path: &str, ready: bool) -> (&'static str, &'static str) {
    match (path, ready) {
        ("/healthz", _) => ("200 OK", "flanneld is running"),
        ("/readyz", true) => ("200 OK", "flanneld is ready"),
        ("/readyz", false) => ("503 Service Unavailable", "flanneld is not ready yet"),
        _ => ("404 Not Found", "there is /healthz and /readyz"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(request.as_bytes());
        let mut said = String::new();
        // A request that was not read to its end has the connection reset behind the answer.
        let _ = stream.read_to_string(&mut said);
        said
    }

    fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    #[test]
    fn the_paths_answer_as_flannels_do() {
        let ready = Ready::default();
        let address = serve("127.0.0.1:0".parse().unwrap(), ready.clone()).unwrap();
        assert!(get(address, "/healthz").ends_with("\r\n\r\nflanneld is running"));
        let said = get(address, "/readyz?verbose");
        assert!(said.starts_with("HTTP/1.1 503 ") && said.ends_with("\r\n\r\nflanneld is not ready yet"), "{said}");
        ready.set(true);
        let said = get(address, "/readyz");
        assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("\r\n\r\nflanneld is ready"), "{said}");
        assert!(get(address, "/metrics").starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
        assert!(!get(address, &"x".repeat(REQUEST_LEN_MAX)).contains(" 200 "));
    }

    #[test]
    fn who_only_connects_keeps_nobody_from_an_answer() {
        let address = serve("127.0.0.1:0".parse().unwrap(), Ready::default()).unwrap();
        let _idle: Vec<TcpStream> = (0..CONNECTIONS_MAX - 1).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(get(address, "/healthz").ends_with("flanneld is running"));
    }
}
