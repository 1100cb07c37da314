//! The program that is to be run: where it lies, and whether the dynamic linker will load the shim into it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;

use super::elf::{Abi, Format, format};

/// Where programs are without `PATH` (`confstr(_CS_PATH)`).
const USUAL: &str = "/bin:/usr/bin";
/// So many scripts may be scripts for scripts (fs/exec.c, `exec_binprm`).
const DEPTH: usize = 5;

/// Why there is nothing to run. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No such file.
    #[error("{}: there is no such program", .0.display())]
    Missing(OsString),
    /// A file, but not for us to run.
    #[error("{} cannot be run ({source})", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why the shim cannot come into a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// No dynamic linker.
    Static,
    /// The kernel gives it rights that its user has not, and so the dynamic linker ignores LD_PRELOAD.
    Rights(&'static str),
    /// A dynamic linker that is not glibc's.
    Linker(OsString),
    /// Another processor's.
    Foreign,
}

impl Hindrance {
    /// For people: the program that ... is.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Static => "is statically linked".to_owned(),
            Self::Rights(what) => format!("is {what}"),
            Self::Linker(path) => format!("is loaded by {}, not by glibc", path.display()),
            Self::Foreign => "is for another processor".to_owned(),
        }
    }
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The file that is executed.
    pub path: PathBuf,
    /// What counts for libraries: of a script its interpreter's. `None` if it cannot be told.
    pub abi: Option<Abi>,
    /// Why the shim cannot come in.
    pub hindrance: Option<Hindrance>,
}

impl Program {
    /// Finds and looks at a program as `execvp` would.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub fn find(name: &OsStr, search: Option<&OsStr>) -> Result<Self, ProgramError> {
        let path = find(name, search)?;
        let (abi, hindrance) = look(&path, DEPTH);
        Ok(Self { path, abi, hindrance })
    }
}

fn find(name: &OsStr, search: Option<&OsStr>) -> Result<PathBuf, ProgramError> {
    let refused = |path: PathBuf, errno: Errno| ProgramError::Refused {
        path,
        source: errno.into(),
    };
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(Errno::NOENT) => Err(ProgramError::Missing(name.to_owned())),
            Err(errno) => Err(refused(path, errno)),
        };
    }
    let mut not_ours = None;
    let search = search.unwrap_or(OsStr::new(USUAL));
    for folder in std::env::split_paths(search) {
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &folder
        };
        let path = folder.join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            // Something may still come that we may run.
            Err(Errno::ACCESS) => not_ours = not_ours.or(Some(path)),
            Err(_) => {}
        }
    }
    Err(match not_ours {
        Some(path) if !name.is_empty() => refused(path, Errno::ACCESS),
        _ => ProgramError::Missing(name.to_owned()),
    })
}

/// A file that we may execute?
fn executable(path: &Path) -> Result<(), Errno> {
    let found = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// What decides whether the shim comes into the program at `path`.
fn look(path: &Path, depth: usize) -> (Option<Abi>, Option<Hindrance>) {
    // A program that may be run but not read: nothing is known against it.
    let Ok(file) = File::open(path) else {
        return (None, rights(path).map(Hindrance::Rights));
    };
    match format(&|at, into: &mut [u8]| file.read_exact_at(into, at).ok()) {
        Format::Elf(elf) => {
            let hindrance = match elf.interpreter {
                _ if !is_native(elf.abi) => Some(Hindrance::Foreign),
                None if !is_linker(path) => Some(Hindrance::Static),
                Some(linker) if !is_glibc(&linker) => Some(Hindrance::Linker(OsString::from_vec(linker))),
                _ => rights(path).map(Hindrance::Rights),
            };
            (Some(elf.abi), hindrance)
        }
        // The kernel looks at the rights of the interpreter only (fs/exec.c, `bprm_fill_uid`).
        Format::Script(interpreter) if depth > 0 => {
            look(Path::new(OsStr::from_bytes(&interpreter)), depth - 1)
        }
        // A shell's, then: `execvp` gives it to /bin/sh.
        Format::Script(_) | Format::Other => (None, None),
    }
}

/// Does this machine run it by itself? The first rows of the table are 64-bit machines with their 32-bit sides.
fn is_native(abi: Abi) -> bool {
    let machines: &[u16] = match std::env::consts::ARCH {
        "x86_64" | "x86" => &[62, 3],
        "aarch64" | "arm" => &[183, 40],
        _ => return true,
    };
    machines.contains(&abi.machine)
}

/// glibc's dynamic linker by its file name: `ld-linux-x86-64.so.2`, `ld-linux.so.2`, `ld64.so.1`. musl's is
/// `ld-musl-x86_64.so.1`.
fn is_glibc(linker: &[u8]) -> bool {
    let name = linker.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    [&b"ld-linux"[..], b"ld64.so", b"ld.so", b"ld-2."]
        .iter()
        .any(|start| name.starts_with(start))
}

/// The dynamic linker run as a program, with the program as its argument, loads what LD_PRELOAD names all the same.
fn is_linker(path: &Path) -> bool {
    std::fs::canonicalize(path)
        .ok()
        .and_then(|path| path.file_name().map(|name| is_glibc(name.as_bytes())))
        .unwrap_or(false)
}

/// What the kernel gives the program beyond its user's rights, in a word. Not where the file system or the user has none
/// to give, nor for who has them anyway (security/commoncap.c, `cap_bprm_creds_from_file`).
fn rights(path: &Path) -> Option<&'static str> {
    let found = rustix::fs::stat(path).ok()?;
    let nosuid = statvfs(path).is_ok_and(|file_system| file_system.flags().contains(FsFlags::ST_NOSUID));
    if nosuid || no_new_privileges() {
        return None;
    }
    let mode = Mode::from_raw_mode(found.st_mode);
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if mode.contains(Mode::SUID) && found.st_uid != user.as_raw() {
        return Some("setuid");
    }
    if mode.contains(Mode::SGID | Mode::XGRP) && found.st_gid != group.as_raw() {
        return Some("setgid");
    }
    let mut capability = [0_u8; 64];
    let capable = rustix::fs::getxattr(path, "security.capability", &mut capability).is_ok();
    (capable && !user.is_root()).then_some("given capabilities by its file")
}

fn no_new_privileges() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("NoNewPrivs:\t1"))
}

#[cfg(test)]
mod tests {
    use super::{Hindrance, Program, ProgramError};
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    /// A folder of this test's own.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vidcompat-program-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a new folder");
        folder
    }

    fn put(path: &Path, bytes: &[u8], mode: u32) {
        fs::write(path, bytes).expect("a new file");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    }

    fn found(path: &Path) -> Program {
        Program::find(path.as_os_str(), None).expect("a program")
    }

    #[test]
    fn a_program_is_searched_as_a_shell_does() {
        let folder = folder("search");
        for part in ["a", "b", "c"] {
            fs::create_dir(folder.join(part)).expect("new");
        }
        put(&folder.join("b/tool"), b"#!/bin/sh\n", 0o644);
        put(&folder.join("c/tool"), b"#!/bin/sh\n", 0o755);
        fs::create_dir(folder.join("a/tool")).expect("new");
        let search = ["a", "b", "c"].map(|part| folder.join(part));
        let join = |folders: &[PathBuf]| std::env::join_paths(folders).expect("no colons");
        let find = |folders: &[PathBuf]| Program::find(OsStr::new("tool"), Some(&join(folders)));
        assert_eq!(find(&search).expect("the third").path, folder.join("c/tool"));
        // Files that may not be run are told apart from none.
        assert!(matches!(find(&search[..2]), Err(ProgramError::Refused { .. })));
        assert!(matches!(
            Program::find(OsStr::new("no-tool"), Some(&join(&search))),
            Err(ProgramError::Missing(_))
        ));
        assert!(matches!(
            Program::find(OsStr::new(""), Some(&join(&search))),
            Err(ProgramError::Missing(_))
        ));
        let sh = Program::find(OsStr::new("sh"), None).expect("without PATH");
        assert!(sh.path.ends_with("sh") && sh.hindrance.is_none());
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn of_a_script_its_interpreter_counts_and_a_circle_ends() {
        let folder = folder("scripts");
        let ours = found(Path::new("/proc/self/exe"));
        assert!(ours.abi.is_some() && ours.hindrance.is_none());
        let script = folder.join("script");
        put(&script, b"#!/proc/self/exe -x\n", 0o755);
        assert_eq!(found(&script).abi, ours.abi);
        let circle = folder.join("circle");
        put(&circle, format!("#!{}\n", circle.display()).as_bytes(), 0o755);
        assert_eq!((found(&circle).abi, found(&circle).hindrance), (None, None));
        let plain = folder.join("plain");
        put(&plain, b"echo\n", 0o755);
        assert_eq!((found(&plain).abi, found(&plain).hindrance), (None, None));
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn the_shim_is_kept_out_of_static_foreign_and_musl_programs() {
        let folder = folder("kinds");
        let mut bytes = fs::read("/proc/self/exe").expect("ourselves");
        bytes.truncate(1 << 16);
        let at = bytes
            .windows(9)
            .position(|nine| nine == b"/ld-linux")
            .expect("a dynamic linker");
        let path = folder.join("program");
        let look_at = |bytes: &[u8]| {
            put(&path, bytes, 0o755);
            found(&path).hindrance
        };
        assert_eq!(look_at(&bytes), None);
        let mut musl = bytes.clone();
        musl[at..at + 9].copy_from_slice(b"/ld-musl-");
        let hindrance = look_at(&musl).expect("musl");
        assert!(hindrance.text().contains("ld-musl-"), "{hindrance:?}");
        let mut foreign = bytes.clone();
        foreign[18..20].copy_from_slice(&[22, 0]);
        assert_eq!(look_at(&foreign), Some(Hindrance::Foreign));
        // No program headers, no PT_INTERP.
        let mut without = bytes;
        without[if size_of::<usize>() == 8 { 56 } else { 44 }] = 0;
        assert_eq!(look_at(&without), Some(Hindrance::Static));
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn a_setgid_program_of_another_group_is_seen_and_our_own_is_not() {
        let folder = folder("setgid");
        let path = folder.join("program");
        let bytes = fs::read("/proc/self/exe").expect("ourselves");
        put(&path, &bytes[..1 << 16], 0o6755);
        // Our own user's and group's: nothing is given.
        assert_eq!(found(&path).hindrance, None);
        if std::os::unix::fs::chown(&path, None, Some(12_345)).is_ok() {
            put(&path, &bytes[..1 << 16], 0o2755);
            assert_eq!(found(&path).hindrance, Some(Hindrance::Rights("setgid")));
        }
        fs::remove_dir_all(&folder).expect("ours");
    }
}
