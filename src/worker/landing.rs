//! Where a restore lands: a device or file that is written in place, or a new file that gets its name when it is whole.
//!
//! A new file is made beside its place as `.tidemark-<uid>.part` and renamed at the end, never over anything. So what
//! bears the name is all that was asked for, and the next attempt finds what this one left. An attempt killed between the rename
//! and its last word is recognised by the file's extended attribute, where the file system has such; elsewhere the next
//! attempt refuses the file, and a person looks.
//!
//! The folder is opened once beneath its root, and everything is done relative to it.

use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, XattrFlags, fgetxattr, fsetxattr, fsync, linkat, openat2,
        renameat_with, statat, unlinkat,
    },
    io::Errno,
};

use crate::model::job::{Device, Overwrite};

/// Names the Restore that made a file.
const MADE_BY: &str = "user.tidemark.restore";

pub(super) struct Landing {
    path: PathBuf,
    uid: String,
    folder: OwnedFd,
    name: OsString,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Written in place: a device, an old file, or our own that was whole already.
    InPlace,
    NewFile,
}

impl Landing {
    /// What is written to, if it may be. The error says what was seen and the cure.
    pub(super) fn open(device: &Device, uid: &str) -> Result<Self, String> {
        let path = device.path.clone();
        let outside = || format!("it is not below {}", device.root.display());
        let below = path.strip_prefix(&device.root).map_err(|_| outside())?;
        let name = below.file_name().ok_or_else(outside)?.to_owned();
        let folder = open_folder(&device.root, below.parent().unwrap_or(Path::new(""))).map_err(|error| {
            format!("its folder cannot be opened below {}: {error}; make it first", device.root.display())
        })?;
        let is_there = match statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => true,
            Err(Errno::NOENT) => false,
            Err(error) => return Err(io::Error::from(error).to_string()),
        };
        let kind = match (device.overwrite, is_there) {
            (Overwrite::Replace, true) => Kind::InPlace,
            (Overwrite::Replace, false) => {
                return Err(
                    "it is not there, and overwrite: Replace writes in place; overwrite: Refuse makes a new file"
                        .into(),
                );
            }
            (Overwrite::Refuse, false) => Kind::NewFile,
            (Overwrite::Refuse, true) if is_made_by(&folder, &name, uid) => Kind::InPlace,
            (Overwrite::Refuse, true) => {
                return Err("it exists; remove it, or create a new Restore with overwrite: Replace".into());
            }
        };
        Ok(Self { path, uid: uid.to_owned(), folder, name, kind })
    }

    /// Where the blocks are written.
    pub(super) fn target(&self) -> PathBuf {
        match self.kind {
            Kind::InPlace => self.path.clone(),
            Kind::NewFile => self.path.with_file_name(self.part()),
        }
    }

    /// Everything is on stable storage: a new file gets its name.
    pub(super) fn finish(self) -> Result<(), String> {
        if self.kind == Kind::InPlace {
            return Ok(());
        }
        let part = self.part();
        self.sign(&part);
        let named = match renameat_with(&self.folder, &part, &self.folder, &self.name, RenameFlags::NOREPLACE) {
            // Some network file systems cannot: a second name, and then not the first any more, is the same.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                linkat(&self.folder, &part, &self.folder, &self.name, AtFlags::empty())
                    .and_then(|()| unlinkat(&self.folder, &part, AtFlags::empty()))
            }
            renamed => renamed,
        };
        match named.and_then(|()| fsync(&self.folder)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(format!(
                "somebody made it while it was being restored; the whole volume is in {} beside it",
                part.display()
            )),
            Err(error) => Err(format!(
                "the restored file {} beside it cannot be given its name: {}",
                part.display(),
                io::Error::from(error)
            )),
        }
    }

    fn part(&self) -> OsString {
        format!(".tidemark-{}.part", self.uid).into()
    }

    /// Without extended attributes nothing is lost but the cure for one moment.
    fn sign(&self, part: &OsString) {
        let signed = open_beneath(&self.folder, part)
            .and_then(|file| fsetxattr(&file, MADE_BY, self.uid.as_bytes(), XattrFlags::empty()));
        if let Err(error) = signed {
            tracing::debug!(%error, path = %self.path.display(), "Restored file could not be signed");
        }
    }
}

fn is_made_by(folder: &OwnedFd, name: &OsString, uid: &str) -> bool {
    let mut found = [0; 64];
    let read = open_beneath(folder, name).and_then(|file| fgetxattr(&file, MADE_BY, &mut found[..]));
    read.is_ok_and(|length| found.get(..length) == Some(uid.as_bytes()))
}

/// A regular file: anything else would not be opened for reading without doing something, and has no such attribute.
fn open_beneath(folder: &OwnedFd, name: &OsString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat2(folder, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

fn open_folder(root: &Path, below: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let below = if below == Path::new("") { Path::new(".") } else { below };
    Ok(openat2(&root, below, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(root: &Path, name: &str, overwrite: Overwrite) -> Device {
        Device { path: root.join(name), root: root.to_owned(), overwrite }
    }

    #[test]
    fn law_4_a_new_file_bears_its_name_only_when_it_is_whole_and_replaces_nothing() {
        let home = tempfile::tempdir().expect("a folder");
        let new = device(home.path(), "a.img", Overwrite::Refuse);
        let landing = Landing::open(&new, "uid-1").expect("nothing is there");
        std::fs::write(landing.target(), "whole").expect("ours");
        assert!(!new.path.exists(), "not yet");
        let again = Landing::open(&new, "uid-1").expect("the next attempt");
        assert_eq!(again.target(), landing.target(), "finds what the first left");
        landing.finish().expect("renamed");
        assert_eq!(std::fs::read_to_string(&new.path).expect("it is there"), "whole");

        let refused = Landing::open(&new, "uid-2").err().expect("another Restore");
        assert!(refused.contains("it exists; remove it"), "{refused}");
        let late = device(home.path(), "b.img", Overwrite::Refuse);
        let landing = Landing::open(&late, "uid-2").expect("nothing is there");
        std::fs::write(landing.target(), "whole").expect("ours");
        std::fs::write(&late.path, "somebody else").expect("theirs");
        let refused = landing.finish().expect_err("it exists now");
        assert!(refused.contains("somebody made it"), "{refused}");
        assert_eq!(std::fs::read_to_string(&late.path).expect("it is there"), "somebody else");
    }

    #[test]
    fn in_place_needs_something_to_write_to() {
        let home = tempfile::tempdir().expect("a folder");
        let old = device(home.path(), "a.img", Overwrite::Replace);
        let refused = Landing::open(&old, "uid-1").err().expect("nothing is there");
        assert!(refused.contains("overwrite: Refuse makes a new file"), "{refused}");
        std::fs::write(&old.path, "old").expect("ours");
        let landing = Landing::open(&old, "uid-1").expect("it is there");
        assert_eq!(landing.target(), old.path);
        landing.finish().expect("nothing to do");
        assert_eq!(std::fs::read_to_string(&old.path).expect("it is there"), "old");
    }

    #[test]
    fn law_11_a_folder_that_leads_out_of_its_root_is_refused() {
        let (home, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        std::os::unix::fs::symlink(other.path(), home.path().join("out")).expect("a link");
        for name in ["out/a.img", "../a.img", "/etc/a.img"] {
            let refused = Landing::open(&device(home.path(), name, Overwrite::Refuse), "uid-1").err();
            assert!(refused.is_some(), "{name}");
        }
        assert_eq!(std::fs::read_dir(other.path()).expect("readable").count(), 0);
    }
}
