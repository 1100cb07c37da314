//! The library in real programs that have nothing to do with it: they must not notice, also not beside other libraries
//! that stand before the same functions.
#![allow(clippy::unwrap_used)] // a test may panic, that is how it fails

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The library, built in this test's own profile: cargo builds no cdylib for tests.
fn shim() -> String {
    static BUILT: OnceLock<String> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--quiet",
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ]);
        cargo.arg("--target-dir").arg(target);
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            cargo.arg("--release");
            "release"
        };
        assert!(cargo.status().unwrap().success());
        let shim = target.join(profile).join("libvidcompat.so");
        shim.into_os_string().into_string().unwrap()
    });
    built.clone()
}

/// A C program of these, compiled once. One of them the guest suite uses too, with a node.
fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
        std::fs::create_dir_all(&directory).unwrap();
        for source in ["client-shim/tests/programs/plain.c", "tests/clients/quiet.c"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(source);
            let name = source.file_stem().unwrap();
            let mut compiler = Command::new("cc");
            compiler.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]);
            let compiled = compiler.arg(directory.join(name)).arg(&source).status().unwrap();
            assert!(compiled.success(), "{}", source.display());
        }
        directory
    });
    directory.join(name)
}

/// Other libraries that allocate with mmap early, or stand before open, ioctl, mmap and close, as far as they are
/// installed (tests/setup --suite).
fn others() -> Vec<String> {
    let names = [
        "libjemalloc.so.2",
        "libtcmalloc_minimal.so.4",
        "libv4l/v4l2convert.so",
    ];
    let found: Vec<_> = std::fs::read_dir("/usr/lib")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .filter(|path| path.exists())
        .map(|path| path.into_os_string().into_string().unwrap())
        .collect();
    for name in names {
        if !found.iter().any(|path| path.ends_with(name)) {
            eprintln!("not installed, and not tested: {name}");
        }
    }
    found
}

/// What a program has said, on both ways, and how it has ended.
fn run(preload: &str, program: &Path, arguments: &[&str]) -> (String, String, Option<i32>) {
    let output = Command::new(program)
        .args(arguments)
        .env("LD_PRELOAD", preload)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

/// Runs it with and without the shim: alone, and with each of the others, which the shim stands before or behind.
fn is_the_same(program: &Path, arguments: &[&str], status: i32) {
    let shim = shim();
    let alone = run("", program, arguments);
    assert_eq!((alone.1.as_str(), alone.2), ("", Some(status)), "{}", alone.0);
    assert_eq!(run(&shim, program, arguments), alone);
    for other in others() {
        // Some of these change what the program sees themselves.
        let alone = run(&other, program, arguments);
        for preload in [format!("{shim}:{other}"), format!("{other}:{shim}")] {
            assert_eq!(run(&preload, program, arguments), alone, "{preload}");
        }
    }
}

#[test]
fn true_and_ls() {
    is_the_same(Path::new("/bin/true"), &[], 0);
    is_the_same(Path::new("/bin/ls"), &["-lR", "/usr/include/linux"], 0);
}

#[test]
fn every_function_that_we_stand_before() {
    is_the_same(&program("plain"), &[], 7);
}

#[test]
fn nothing_is_allocated() {
    let program = program("quiet");
    assert_eq!(run("", &program, &[]), run(&shim(), &program, &[]));
    assert_eq!(run(&shim(), &program, &[]).0, "nothing was allocated\n");
}

const PYTHON: &str = r#"
import ctypes, mmap, os, subprocess, sys, tempfile, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
with tempfile.TemporaryFile() as f:
    f.write(b'x' * 8192); f.flush()
    at = libc.mmap(None, 8192, mmap.PROT_READ, mmap.MAP_SHARED, f.fileno(), 4096)
    print(ctypes.string_at(at, 4), libc.mmap(None, 8192, 1, 1, 999, 0), ctypes.get_errno())
    with mmap.mmap(f.fileno(), 0) as m:
        m[0:2] = b'yz'
        print(m[:4])
print(subprocess.run(['echo', 'vfork'], capture_output=True, close_fds=True))
print(subprocess.run('echo shell; exit 3', shell=True, stdout=subprocess.PIPE, preexec_fn=lambda: os.closerange(100, 200)))
pid = os.posix_spawn('/bin/echo', ['echo', 'spawn'], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 1, 9)])
print(os.waitpid(pid, 0)[1])
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    os.close(0); os.dup2(1, 0); print('child', flush=True); os._exit(4)
print(os.waitpid(pid, 0)[1])
def work(sums):
    for i in range(300):
        r, w = os.pipe(); os.write(w, b'a'); sums.append(os.read(r, 1)); os.close(r); os.close(w)
sums = []
threads = [threading.Thread(target=work, args=(sums,)) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(sums))
"#;

#[test]
fn python_maps_forks_and_spawns() {
    is_the_same(Path::new("/usr/bin/python3"), &["-c", PYTHON], 0);
}

/// The system calls of a program from `close(-1)` on which it makes by these names, addresses apart. The loader's are
/// before.
fn system_calls(preload: &str, program: &Path) -> Vec<String> {
    let output = Command::new("strace")
        .args([
            "-e",
            "trace=ioctl,mmap,close,dup2,dup3,close_range,openat,fstat,newfstatat",
            "-E",
        ])
        .arg(format!("LD_PRELOAD={preload}"))
        .arg(program)
        .arg("calls")
        .output()
        .unwrap();
    let calls = String::from_utf8(output.stderr).unwrap();
    let mut calls: Vec<_> = calls
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .map(|line| {
            let words = line.split(' ').map(|word| {
                let address =
                    word.contains("0x7") || word.contains("0x5") || word.contains("vidcompat-plain");
                if address { "..." } else { word }
            });
            words.collect::<Vec<_>>().join(" ")
        })
        .collect();
    let begin = calls
        .iter()
        .position(|call| call.starts_with("openat(AT_FDCWD, \"/dev/zero\""));
    calls.split_off(begin.expect("strace shows the program's calls"))
}

#[test]
fn the_kernel_sees_the_same_calls() {
    let program = program("plain");
    let alone = system_calls("", &program);
    let ours = system_calls(&shim(), &program);
    assert!(alone.len() > 50, "{alone:#?}");
    // What we add is one fstat for each ioctl that we may have to do with, if it has an fd: five; and for each mmap of
    // what has none: two.
    let is_fstat = |call: &&String| call.starts_with("fstat(") || call.starts_with("newfstatat(");
    let added = ours.iter().filter(is_fstat).count() - alone.iter().filter(is_fstat).count();
    let others = |calls: &[String]| {
        calls
            .iter()
            .filter(|call| !is_fstat(call))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(others(&alone), others(&ours));
    assert_eq!(added, 7, "{ours:#?}");
}
