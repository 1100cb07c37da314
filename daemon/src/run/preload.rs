//! The shim's library: where it lies, and LD_PRELOAD that names it.
//!
//! `$LIB` stays in the path for the dynamic linker, which puts its own folder there (ld.so(8)): so one path serves 64- and
//! 32-bit programs, and a program of ours that starts one of the other kind.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::elf::Abi;

/// What the dynamic linker replaces.
const LIB: &str = "$LIB";

/// Where the library may lie, the first first: installed beside the command (`/usr/bin` and `/usr/$LIB`), in a
/// development tree where both are made (`target/shim` has a folder for each kind), and where cargo puts it.
fn places(command: &Path) -> Vec<PathBuf> {
    let Some(folder) = command.parent() else {
        return Vec::new();
    };
    let up = folder.parent().unwrap_or(folder);
    vec![
        up.join("$LIB/vidcompat/libvidcompat.so"),
        up.join("shim/$LIB/libvidcompat.so"),
        folder.join("libvidcompat.so"),
    ]
}

/// The library for programs of `abi`, of which `library` with `$LIB` stands for all.
pub(crate) fn for_abi(library: &Path, abi: Abi) -> Option<PathBuf> {
    let text = library.to_str()?;
    let candidates = abi
        .lib_folders()
        .into_iter()
        .map(|folder| text.replace(LIB, &folder));
    candidates.map(PathBuf::from).find(|path| path.exists())
}

/// The library: as given, or the first of the places at which there is one for `abi`, or else for us.
#[must_use]
pub fn library(
    given: Option<&Path>,
    command: &Path,
    abi: Option<Abi>,
    our_abi: Option<Abi>,
) -> Option<PathBuf> {
    if let Some(given) = given {
        return Some(given.to_owned());
    }
    let places = places(command);
    let serving = |abi: Abi| places.iter().find(|place| serves(place, abi)).cloned();
    abi.and_then(serving).or_else(|| our_abi.and_then(serving))
}

/// Is there a library for programs of `abi`? One without `$LIB` in its path is for its own kind.
#[must_use]
pub fn serves(library: &Path, abi: Abi) -> bool {
    let Some(file) = for_abi(library, abi).and_then(|path| std::fs::File::open(path).ok()) else {
        return false;
    };
    use std::os::unix::fs::FileExt;
    match super::elf::format(&|at, into: &mut [u8]| file.read_exact_at(into, at).ok()) {
        super::elf::Format::Elf(elf) => elf.abi == abi,
        _ => false,
    }
}

/// Can LD_PRELOAD name it? Blanks and colons part its words.
#[must_use]
pub fn can_be_named(library: &Path) -> bool {
    !library
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| matches!(byte, b' ' | b':' | b'\t' | b'\n'))
}

/// LD_PRELOAD with the library before what the user has there.
#[must_use]
pub fn joined(library: &Path, there: Option<&OsStr>) -> OsString {
    let mut joined = library.as_os_str().to_owned();
    let words = there.map(OsStr::as_bytes).unwrap_or_default();
    for word in words.split(|byte| matches!(byte, b' ' | b':')) {
        // Once is enough.
        if !word.is_empty() && word != library.as_os_str().as_bytes() {
            joined.push(":");
            joined.push(OsStr::from_bytes(word));
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::{can_be_named, joined, library, places, serves};
    use crate::run::elf::{Abi, Format, format};
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    fn our_abi() -> Abi {
        let file = fs::File::open("/proc/self/exe").expect("ourselves");
        match format(&|at, into: &mut [u8]| file.read_exact_at(into, at).ok()) {
            Format::Elf(elf) => elf.abi,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_users_own_preloads_stay_behind_ours() {
        let ours = Path::new("/usr/$LIB/vidcompat/libvidcompat.so");
        let join = |there: &str| joined(ours, Some(OsStr::new(there))).into_string().expect("text");
        assert_eq!(joined(ours, None), ours.as_os_str());
        assert_eq!(join(""), ours.display().to_string());
        assert_eq!(join("/a.so b.so"), format!("{}:/a.so:b.so", ours.display()));
        // `vidcompat run` inside `vidcompat run`.
        assert_eq!(join(&join("/a.so")), join("/a.so"));
    }

    #[test]
    fn blanks_and_colons_cannot_be_named() {
        assert!(can_be_named(Path::new("/usr/$LIB/x.so")));
        assert!(!can_be_named(Path::new("/my tree/x.so")) && !can_be_named(Path::new("/a:b/x.so")));
    }

    #[test]
    fn installed_comes_before_the_tree() {
        let found = places(Path::new("/usr/bin/vidcompat"));
        assert_eq!(found[0], Path::new("/usr/$LIB/vidcompat/libvidcompat.so"));
        let found = places(Path::new("/tree/target/release/vidcompat"));
        assert_eq!(found[1], Path::new("/tree/target/shim/$LIB/libvidcompat.so"));
        assert_eq!(found[2], Path::new("/tree/target/release/libvidcompat.so"));
    }

    #[test]
    fn a_library_serves_programs_of_its_own_kind() {
        let folder = std::env::temp_dir().join(format!("vidcompat-preload-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let abi = our_abi();
        let other = Abi {
            class: 3 - abi.class,
            ..abi
        };
        let lib = folder.join("shim").join(&abi.lib_folders()[0]);
        fs::create_dir_all(&lib).expect("a new folder");
        fs::copy("/proc/self/exe", lib.join("libvidcompat.so")).expect("a file");
        let command = folder.join("release/vidcompat");
        let found = library(None, &command, Some(abi), Some(abi)).expect("one");
        assert_eq!(found, folder.join("shim/$LIB/libvidcompat.so"));
        assert!(serves(&found, abi) && !serves(&found, other));
        // For a program of another kind it is still ours: it may start one of this kind.
        assert_eq!(library(None, &command, Some(other), Some(abi)), Some(found));
        assert_eq!(library(None, Path::new("/no/where"), Some(abi), Some(abi)), None);
        let given = Path::new("/given.so");
        assert_eq!(library(Some(given), &command, None, None).as_deref(), Some(given));
        fs::remove_dir_all(&folder).expect("ours");
    }
}
