//! What a tunnel left on this host: the files of `/run/weft` (or `--run-dir`), by which the next `weft` finds the tunnel again.
//!
//! | file | holds | written by |
//! |---|---|---|
//! | `NAME.json` | [`State`] | weft, atomically, before each step that leaves something behind |
//! | `NAME.sock` | weftd's control socket | weftd |
//! | `NAME.log` | weftd's standard error | weftd |
//! | `NAME.peers` | what flanneld's hooks told ([`crate::flannel::hook`]) | weft, atomically |
//! | `NAME.rules` | by what a flannel daemon makes traffic rules | `weft flanneld` |
//! | `NAME.lock` | who is at work on the tunnel | weft, under flock(2) |

use crate::daemon::Process;
use crate::link::LinkPlan;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory of these files, unless somebody says otherwise.
pub const RUN_DIR: &str = "/run/weft";
/// The variable by which all commands find another one.
pub const RUN_DIR_VARIABLE: &str = "WEFT_RUN_DIR";

/// The files of one tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    dir: PathBuf,
    name: String,
}

/// What there is to take down, and by what weftd is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Name of the tunnel.
    pub name: String,
    /// Absolute path of the tunnel file.
    pub config: PathBuf,
    /// Inode of the network namespace that links and routes are in.
    pub network_namespace: u64,
    /// The process.
    pub weftd: Process,
    /// Its arguments without `--mtu`, which may change under way.
    pub arguments: Vec<String>,
    /// The TUN device, once weftd told.
    pub tun: Option<Tun>,
    /// What was, or is about to be, programmed.
    pub plan: LinkPlan,
}

/// A TUN device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tun {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub ifindex: u32,
}

/// A file of the run directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The content is not ours.
    #[error("{path}: not a state file of weft: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// Somebody else is at work.
    #[error("tunnel {name:?} is in the hands of another weft{}", .pid.map(|pid| format!(", process {pid}")).unwrap_or_default())]
    Locked {
        /// The tunnel.
        name: String,
        /// Who, if it said.
        pid: Option<u32>,
    },
}

impl StateError {
    /// Whether the kernel refused for lack of permission.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, StateError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl Paths {
    /// The files of the tunnel `name` in `dir`.
    pub fn new(dir: &Path, name: &str) -> Paths {
        Paths { dir: dir.to_path_buf(), name: name.to_owned() }
    }

    /// Name of the tunnel.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// weftd's control socket.
    pub fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    /// weftd's standard error.
    pub fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// What flanneld's hooks have told.
    pub fn peers(&self) -> PathBuf {
        self.file("peers")
    }

    /// By what a flannel daemon makes traffic rules.
    pub fn rules(&self) -> PathBuf {
        self.file("rules")
    }

    fn state(&self) -> PathBuf {
        self.file("json")
    }

    fn lock(&self) -> PathBuf {
        self.file("lock")
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.name))
    }

    /// Makes the directory. Anybody may look into it; weftd's socket guards itself.
    pub fn make_dir(&self) -> Result<(), StateError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.dir);
        made.map_err(|source| StateError::File { path: self.dir.clone(), source })
    }

    /// Reads the state; `None`: the tunnel is not up.
    pub fn read_state(&self) -> Result<Option<State>, StateError> {
        let path = self.state();
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(state) => Ok(Some(state)),
                Err(source) => Err(StateError::Content { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::File { path, source }),
        }
    }

    /// Writes the state, all or nothing: a reader sees the old one or the new one.
    pub fn write_state(&self, state: &State) -> Result<(), StateError> {
        let (path, temporary) = (self.state(), self.file("json.new"));
        let bytes = serde_json::to_vec_pretty(state).expect("a state has string keys only");
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| StateError::File { path: path.clone(), source })
    }

    /// Removes every file of the tunnel but the lock and the word about rules, which outlive a tunnel.
    pub fn clear(&self) -> Result<(), StateError> {
        let hooks = [self.peers(), self.file("peers.new")];
        let files = [self.socket(), self.log(), self.file("json.new"), self.state()];
        hooks.into_iter().chain(files).try_for_each(remove_file)
    }

    /// Removes every file of the tunnel, the lock last, and the directory if nothing else is in it.
    pub fn remove(&self, lock: Lock) -> Result<(), StateError> {
        self.clear()?;
        remove_file(self.rules())?;
        remove_file(lock.path.clone())?;
        // Other tunnels' files, or an administrator's, keep the directory.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }

    /// Takes the lock, and holds it until it is dropped.
    ///
    /// # Errors
    /// [`StateError::Locked`] while another process holds it.
    pub fn take_lock(&self) -> Result<Lock, StateError> {
        let path = self.lock();
        let failed = |source: io::Error| StateError::File { path: path.clone(), source };
        loop {
            self.make_dir()?;
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
            let mut file = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // Somebody removed the directory.
                other => other.map_err(failed)?,
            };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                let pid = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                return Err(StateError::Locked { name: self.name.clone(), pid });
            }
            // The holder before may have removed the file between open and flock: then this lock guards nothing.
            let inode = file.metadata().map_err(failed)?.ino();
            if fs::metadata(&path).is_ok_and(|named| named.ino() == inode) {
                file.set_len(0).map_err(failed)?;
                write!(file, "{}", std::process::id()).map_err(failed)?;
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

/// The right to change a tunnel.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

fn remove_file(path: PathBuf) -> Result<(), StateError> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::File { path, source }),
        _ => Ok(()),
    }
}

/// The states of all tunnels in `dir`; files that are none of ours are passed over.
pub fn all(dir: &Path) -> Vec<State> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut states: Vec<State> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
        .collect();
    states.sort_by(|a, b| a.name.cmp(&b.name));
    states
}

/// Inode of the calling thread's network namespace: tells namespaces of one kernel apart.
pub fn network_namespace() -> Result<u64, StateError> {
    let path = PathBuf::from("/proc/thread-self/ns/net");
    match fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.ino()),
        Err(source) => Err(StateError::File { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str) -> State {
        State {
            name: name.into(),
            config: "/etc/weft/t.toml".into(),
            network_namespace: 1,
            weftd: Process { pid: 1, start_ticks: 2, program: "/usr/bin/weftd".into() },
            arguments: vec!["--tun".into(), "t".into()],
            tun: Some(Tun { name: "t".into(), ifindex: 7 }),
            plan: LinkPlan::default(),
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), "t");
        assert_eq!(paths.read_state().unwrap(), None);
        paths.write_state(&state("t")).unwrap();
        assert_eq!(paths.read_state().unwrap(), Some(state("t")));
        assert_eq!(all(dir.path()), [state("t")]);
    }

    #[test]
    fn a_foreign_file_in_place_of_the_state_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), "t");
        fs::write(paths.state(), "{").unwrap();
        assert!(paths.read_state().unwrap_err().to_string().contains("t.json"));
        assert_eq!(all(dir.path()), []);
    }

    #[test]
    fn a_lock_is_held_by_one_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("made"), "t");
        let lock = paths.take_lock().unwrap();
        let error = paths.take_lock().unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        paths.take_lock().unwrap();
    }

    #[test]
    fn removal_leaves_nothing_but_what_is_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("weft");
        let (ours, other) = (Paths::new(&run, "t"), Paths::new(&run, "other"));
        let lock = ours.take_lock().unwrap();
        ours.write_state(&state("t")).unwrap();
        fs::write(ours.log(), "x").unwrap();
        other.write_state(&state("other")).unwrap();
        ours.remove(lock).unwrap();
        assert_eq!(fs::read_dir(&run).unwrap().count(), 1);
        let lock = other.take_lock().unwrap();
        other.remove(lock).unwrap();
        assert!(!run.exists());
    }
}
