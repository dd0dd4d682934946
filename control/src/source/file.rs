//! Follows one file through everything that editors and orchestrators do to it.
//!
//! Watched are directories, never the file itself: an editor that saves by rename, a removal, and a Kubernetes ConfigMap,
//! which swaps a symbolic link beside the one that was named, all leave a watch on the file pointing at the old inode.
//!
//! ```text
//! /etc/weft/tunnel.toml -> ..data/tunnel.toml       watched: /etc/weft
//! /etc/weft/..data      -> ..2026_11_23/            watched: /etc/weft (again), /etc/weft/..data as it points
//! ```
//!
//! An event says no more than "look again": the reader compares contents. So events need no filter, and are never wrong.

use inotify::{Inotify, WatchDescriptor, WatchMask};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

/// Symbolic links followed before a path is taken for a circle (the kernel's own limit, include/linux/namei.h `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// What makes a directory worth another look. A file that is still being written says nothing until it is closed.
fn mask() -> WatchMask {
    WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
}

/// A watch over one path.
#[derive(Debug)]
pub struct FileWatch {
    inotify: Inotify,
    path: PathBuf,
    watches: Vec<WatchDescriptor>,
}

impl FileWatch {
    /// Begins to watch `path`, which need not exist. Register the descriptor with an event loop, level- or edge-triggered.
    pub fn new(path: &Path) -> io::Result<FileWatch> {
        let mut watch = FileWatch { inotify: Inotify::init()?, path: std::path::absolute(path)?, watches: Vec::new() };
        watch.rearm()?;
        Ok(watch)
    }

    /// Takes all waiting events; true if there was any. Call [`FileWatch::rearm`] before reading the file.
    pub fn drain(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let mut any = false;
        loop {
            match self.inotify.read_events(&mut buffer) {
                Ok(events) => any |= events.count() > 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) => return Err(error),
            }
        }
    }

    /// Watches the directories that lead to the file as the links point now. A directory that is missing is passed over:
    /// nothing will be heard of it until the next call.
    pub fn rearm(&mut self) -> io::Result<()> {
        let mut watches = Vec::new();
        for directory in directories(&self.path) {
            match self.inotify.watches().add(&directory, mask()) {
                Ok(watch) => watches.push(watch),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error),
            }
        }
        for old in std::mem::replace(&mut self.watches, watches) {
            if !self.watches.contains(&old) {
                // Fails if the directory is gone, and the watch with it.
                let _ = self.inotify.watches().remove(old);
            }
        }
        Ok(())
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl AsRawFd for FileWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

/// The directories of `path` and of every path that it leads to by symbolic links.
fn directories(path: &Path) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    let mut path = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        if !directories.contains(&directory) {
            directories.push(directory.clone());
        }
        match std::fs::read_link(&path) {
            Ok(target) => path = directory.join(target),
            Err(_) => break,
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Place {
        directory: tempfile::TempDir,
        watch: FileWatch,
    }

    impl Place {
        fn new(prepare: impl FnOnce(&Path)) -> Place {
            let directory = tempfile::tempdir().unwrap();
            prepare(directory.path());
            let watch = FileWatch::new(&directory.path().join("t.toml")).unwrap();
            Place { directory, watch }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// Whether anything was noticed since the last call. inotify queues events before the system call that caused
        /// them returns.
        fn noticed(&mut self) -> bool {
            let noticed = self.watch.drain().unwrap();
            self.watch.rearm().unwrap();
            self.watch.drain().unwrap();
            noticed
        }
    }

    #[test]
    fn an_edit_in_place_is_noticed_when_the_file_is_closed() {
        let mut place = Place::new(|directory| fs::write(directory.join("t.toml"), "a").unwrap());
        assert!(!place.noticed());
        let mut file = fs::OpenOptions::new().append(true).open(place.path("t.toml")).unwrap();
        io::Write::write_all(&mut file, b"half").unwrap();
        assert!(!place.noticed());
        drop(file);
        assert!(place.noticed());
    }

    #[test]
    fn a_rename_over_the_file_is_noticed_again_and_again() {
        let mut place = Place::new(|directory| fs::write(directory.join("t.toml"), "a").unwrap());
        for _ in 0..3 {
            fs::write(place.path("new"), "b").unwrap();
            place.noticed();
            fs::rename(place.path("new"), place.path("t.toml")).unwrap();
            assert!(place.noticed());
        }
    }

    #[test]
    fn removal_and_return_are_noticed() {
        let mut place = Place::new(|directory| fs::write(directory.join("t.toml"), "a").unwrap());
        fs::remove_file(place.path("t.toml")).unwrap();
        assert!(place.noticed());
        fs::write(place.path("t.toml"), "b").unwrap();
        assert!(place.noticed());
    }

    #[test]
    fn the_link_swap_of_a_config_map_is_noticed_each_time() {
        let mut place = Place::new(|directory| {
            fs::create_dir(directory.join("..1")).unwrap();
            fs::write(directory.join("..1/t.toml"), "1").unwrap();
            symlink("..1", directory.join("..data")).unwrap();
            symlink("..data/t.toml", directory.join("t.toml")).unwrap();
        });
        for (old, new) in [("..1", "..2"), ("..2", "..3")] {
            fs::create_dir(place.path(new)).unwrap();
            fs::write(place.path(new).join("t.toml"), new).unwrap();
            symlink(new, place.path("..tmp")).unwrap();
            place.noticed();
            fs::rename(place.path("..tmp"), place.path("..data")).unwrap();
            assert!(place.noticed());
            fs::remove_dir_all(place.path(old)).unwrap();
            place.noticed();
        }
        assert_eq!(fs::read_to_string(place.path("t.toml")).unwrap(), "..3");
    }

    #[test]
    fn a_link_to_a_file_elsewhere_is_followed() {
        let elsewhere = tempfile::tempdir().unwrap();
        let target = elsewhere.path().join("real.toml");
        fs::write(&target, "a").unwrap();
        let mut place = Place::new(|directory| symlink(&target, directory.join("t.toml")).unwrap());
        fs::write(&target, "b").unwrap();
        assert!(place.noticed());
    }
}
