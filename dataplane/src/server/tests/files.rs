//! The socket's file and who may do what.

use super::*;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use weft_client::ClientError;

/// Tells the copy of this program that [`others_may_read_but_not_change`] starts which socket to use.
const SOCKET_VARIABLE: &str = "WEFT_TEST_READER_SOCKET";
const NOBODY: u32 = 65_534;

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_socket_is_0660_in_a_0750_directory_and_goes_with_its_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/weft.sock");
    let listener = Listener::bind(&path).unwrap();
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o660, 0o750));
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_names_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weft.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(&path).unwrap();
    let error = Listener::bind(&path).unwrap_err();
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
    assert!(std::fs::symlink_metadata(&path).unwrap().file_type().is_socket(), "the live one stays");
    drop(listener);
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    assert!(matches!(Listener::bind(&path), Err(ListenError::NotSocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn a_listener_leaves_its_successors_socket_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weft.sock");
    let first = Listener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = Listener::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
}

#[test]
fn an_unreachable_socket_is_told_apart_from_a_forbidden_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::connect(dir.path().join("none.sock"), TIMEOUT).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}

#[test]
fn others_may_read_but_not_change() {
    if let Some(path) = std::env::var_os(SOCKET_VARIABLE) {
        return as_reader(Path::new(&path));
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to become another user");
        return;
    }
    let server = Running::start(0);
    server.client().swap(&table(0, 1, 3), None).unwrap();
    let program = server.dir.path().join("reader");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let open = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    open(server.dir.path(), 0o755);
    open(server.path.parent().unwrap(), 0o755);
    let name = "server::tests::files::others_may_read_but_not_change";
    let reader = |socket_mode| {
        open(&server.path, socket_mode);
        let mut command = Command::new(&program);
        command.args(["--exact", name, "--nocapture"]).env(SOCKET_VARIABLE, &server.path);
        command.current_dir("/").uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let output = reader(0o666);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = reader(0o660);
    assert!(String::from_utf8_lossy(&output.stderr).contains("NotPermitted"), "the file's mode keeps strangers out");
    assert_eq!(server.generation(), 1);
}

/// Runs as nobody.
fn as_reader(path: &Path) {
    let mut client = Client::connect(path, TIMEOUT).unwrap();
    assert!(!client.hello().may_change);
    assert_eq!(client.routes().unwrap().set.routes.len(), 3);
    assert_eq!(client.status().unwrap().generation, 1);
    client.peers().unwrap();
    client.stats().unwrap();
    let delta = weft_proto::Delta::default();
    let errors = [
        client.swap(&table(0, 1, 1), None).unwrap_err(),
        client.delta(&delta, None).unwrap_err(),
        client.set_log_level(weft_proto::LogLevel::Trace).unwrap_err(),
        client.drain().unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(&error, ClientError::Refused(refusal) if refusal.code == RefusalCode::NotPermitted),
            "{error}"
        );
    }
    let clients: Vec<_> = (1..READERS_MAX).map(|_| Client::connect(path, TIMEOUT).unwrap()).collect();
    assert!(Client::connect(path, TIMEOUT).is_err(), "readers leave room for the controller");
    drop(clients);
}
