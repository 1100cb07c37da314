//! `vidcompat run`: whose node a program gets, as root and as an ordinary user of group video, whatever kind of program it
//! is; and that it is otherwise the program itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use nix::sys::stat::{major, minor};

use crate::client::{AT_ONCE, Client, run, run_any};
use crate::daemon;
use crate::nodes::{Found, Kind, named, vivid};
use crate::report::{equal, figure};
use crate::setup::{Test, both_real};

pub const TESTS: &[(&str, Test)] = &[
    ("run::every_way_of_opening_a_node_leads_to_ours", every_way),
    (
        "run::a_static_program_has_ours_and_is_told_what_it_lacks",
        statically,
    ),
    ("run::a_setuid_program_has_ours_and_its_users_rights", setuid),
    (
        "run::a_32_bit_program_without_its_shim_has_ours",
        without_its_shim,
    ),
    ("run::exit_status_process_and_death_are_the_programs_own", endings),
    ("run::the_terminals_signals_reach_the_program", job_control),
    ("run::without_a_daemon_or_a_way_nothing_is_run", refusals),
    ("run::everybody_else_has_the_real_node", everybody_else),
    (
        "run::the_device_is_the_same_to_sysfs_and_the_media_controller",
        media,
    ),
    ("run::the_environment_is_the_users_but_for_ours", environment),
    ("run::a_frame_by_mmap_is_the_real_nodes", mmap),
];

/// A user of their own, who is in group video.
const USER: u32 = 1000;
const VIDEO: u32 = 44;
/// What is installed for these tests, where every user may go.
const TREE: &str = "/tmp/vidcompat-run";
const LINK: &str = "/dev/v4l/by-id/usb-vidcompat-run";

/// The node, which group video may open meanwhile, with a link to it as udev makes them.
struct Camera {
    node: Found,
    modes: Vec<(PathBuf, fs::Metadata)>,
}

impl Camera {
    fn new() -> anyhow::Result<Self> {
        daemon::shared()?;
        install()?;
        let node = vivid(0, Kind::VideoCapture)?;
        let codec = named("vim2m")?;
        let mut modes = Vec::new();
        for path in [node.real(), node.ours(), codec.real(), codec.ours()] {
            modes.push((path.clone(), fs::metadata(&path)?));
            chown(&path, None, Some(VIDEO))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
        }
        fs::create_dir_all(Path::new(LINK).parent().context("a folder")?)?;
        drop(fs::remove_file(LINK));
        symlink(node.real(), LINK)?;
        Ok(Self { node, modes })
    }

    fn path(&self) -> String {
        self.node.real().display().to_string()
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        for (path, before) in &self.modes {
            // Nobody else minds.
            let _ = chown(path, None, Some(before.gid()));
            let _ = fs::set_permissions(path, before.permissions());
        }
        let _ = fs::remove_file(LINK);
    }
}

/// `vidcompat`, its libraries and some programs, as a package would lay them.
fn install() -> anyhow::Result<()> {
    if fs::exists(TREE)? {
        return Ok(());
    }
    let built = std::env::current_exe()?;
    let target = built.ancestors().nth(2).context("target/release")?.to_owned();
    let copy = |from: PathBuf, to: &str| -> anyhow::Result<()> {
        let to = Path::new(TREE).join(to);
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::copy(&from, to).with_context(|| from.display().to_string())?;
        Ok(())
    };
    let made = || -> anyhow::Result<()> {
        copy(target.join("release/vidcompat"), "bin/vidcompat")?;
        for lib in ["lib/x86_64-linux-gnu", "lib/i386-linux-gnu"] {
            let from = target.join("shim").join(lib).join("libvidcompat.so");
            copy(from, &format!("{lib}/vidcompat/libvidcompat.so"))?;
        }
        for name in [
            "which_node",
            "which_node-static",
            "which_node-i386",
            "dqbuf_sleeper",
        ] {
            copy(target.join("clients").join(name), &format!("bin/{name}"))?;
        }
        for name in ["which_node", "ld-linux.so.2", "libc.so.6", "libgcc_s.so.1"] {
            copy(
                target.join("clients/i386").join(name),
                &format!("bin/i386/{name}"),
            )?;
        }
        copy(
            PathBuf::from(TREE).join("bin/which_node"),
            "bin/which_node-setuid",
        )?;
        let setuid = fs::Permissions::from_mode(0o4755);
        fs::set_permissions(format!("{TREE}/bin/which_node-setuid"), setuid)?;
        Ok(())
    };
    made().inspect_err(|_| drop(fs::remove_dir_all(TREE)))
}

/// Who runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    User,
}

const BOTH: [Who; 2] = [Who::Root, Who::User];

impl Who {
    /// Runs `words`: how that ended, and what was said.
    fn runs(self, words: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
        let (user, group) = (USER.to_string(), VIDEO.to_string());
        // By their path, so that who searches them meets nothing else.
        let words: Vec<String> = words.iter().map(|word| in_tree(word)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match self {
            Self::Root => run_any(words[0], &words[1..], 12 * AT_ONCE),
            Self::User => {
                let before = ["--reuid", &user, "--regid", &user, "--groups", &group, "--"];
                run_any("setpriv", &[&before, &words[..]].concat(), 12 * AT_ONCE)
            }
        }
    }

    /// The same through `vidcompat run`, unless two real nodes are compared.
    fn runs_on_ours(self, options: &[&str], words: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
        if both_real() {
            return self.runs(words);
        }
        self.runs(&[&["vidcompat", "run"], options, &["--"], words].concat())
    }
}

fn in_tree(word: &str) -> String {
    let names = ["vidcompat", "which_node", "dqbuf_sleeper"];
    match names.iter().any(|name| word.starts_with(name)) {
        true => format!("{TREE}/bin/{word}"),
        false => word.to_owned(),
    }
}

fn number(path: &Path) -> anyhow::Result<String> {
    let number = fs::metadata(path)?.rdev();
    Ok(format!("{}:{}", major(number), minor(number)))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// What `which_node` says on the real node, with ours in its place.
fn expected(native: &str, camera: &Camera) -> anyhow::Result<Vec<String>> {
    let (real, ours) = (number(&camera.node.real())?, number(&camera.node.ours())?);
    ensure!(
        native.contains(&format!("\nopenat: {real} seen as {real}\n")),
        "{native}"
    );
    let line = |line: &str| line.replace(&format!(": {real} seen"), &format!(": {ours} seen"));
    Ok(match both_real() {
        true => lines(native),
        false => native.lines().map(line).collect(),
    })
}

fn every_way() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    let by_number = format!("/dev/char/{}", number(&camera.node.real())?);
    fs::create_dir_all("/dev/char")?;
    if !fs::exists(&by_number)? {
        symlink(camera.node.real(), &by_number)?;
    }
    let mut compared = 0;
    for who in BOTH {
        for program in ["which_node", "which_node-i386"] {
            for path in [&camera.path(), LINK, &by_number] {
                let native = who.runs(&[program, path])?.1;
                let (status, served) = who.runs_on_ours(&[], &[program, path])?;
                equal(&expected(&native, &camera)?, &lines(&served))
                    .with_context(|| format!("{who:?}, {program} {path}, {status}"))?;
                compared += native.lines().count();
            }
        }
    }
    figure(format!("run: {compared} ways of opening a node compared"));
    Ok(())
}

/// Runs `words` where no shim comes in: which node that is, and the line about it.
fn without_shim(
    camera: &Camera,
    who: Who,
    options: &[&str],
    words: &[&str],
) -> anyhow::Result<(String, Vec<String>)> {
    let (status, said) = who.runs_on_ours(options, words)?;
    let (notes, lines): (Vec<String>, Vec<String>) = lines(&said)
        .into_iter()
        .partition(|line| line.starts_with("vidcompat: "));
    ensure!(status.success() && notes.len() <= 1, "{who:?}: {status}: {said}");
    let ours = number(&camera.node.ours())?;
    ensure!(
        both_real() || lines[0].starts_with(&format!("open: {ours} ")),
        "{who:?}: {said}"
    );
    Ok((notes.concat(), lines))
}

fn statically() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    let words = ["which_node-static", &camera.path()];
    for who in BOTH {
        let (note, _) = without_shim(&camera, who, &[], &words)?;
        ensure!(
            both_real() || (note.contains("statically linked") && note.contains("no MMAP")),
            "{who:?}: {note}"
        );
        ensure!(
            both_real() || note.contains("user namespace") == (who == Who::User),
            "{note}"
        );
        let (note, _) = without_shim(&camera, who, &["--quiet"], &words)?;
        ensure!(note.is_empty(), "{note}");
    }
    // It is no script of the shell's, but the shell starts it.
    let script = format!("exec {}", words.map(in_tree).join(" "));
    without_shim(&camera, Who::Root, &[], &["sh", "-c", &script]).map(drop)
}

fn setuid() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    let words = ["which_node-setuid", &camera.path()];
    let (_, native) = Who::User.runs(&words)?;
    ensure!(native.contains(&format!("user 0 group {USER}")), "{native}");
    let (note, lines) = without_shim(&camera, Who::User, &[], &words)?;
    if !both_real() {
        ensure!(
            note.contains("is setuid") && note.contains("your own rights"),
            "{note}"
        );
        ensure!(lines.contains(&format!("user {USER} group {USER}")), "{lines:?}");
        // Without those rights the shim is let in.
        let real = number(&camera.node.real())?;
        ensure!(lines[0].ends_with(&format!("seen as {real}")), "{lines:?}");
    }
    // Root gets nothing by it, and so has the shim.
    let (note, _) = without_shim(&camera, Who::Root, &[], &words)?;
    ensure!(note.is_empty(), "{note}");
    Ok(())
}

fn without_its_shim() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    let only_64 = "/tmp/vidcompat-run-64";
    let lib = format!("{only_64}/lib/x86_64-linux-gnu");
    fs::create_dir_all(&lib)?;
    fs::copy(
        format!("{TREE}/lib/x86_64-linux-gnu/vidcompat/libvidcompat.so"),
        format!("{lib}/libvidcompat.so"),
    )?;
    let shim = format!("{only_64}/$LIB/libvidcompat.so");
    let folder = format!("{TREE}/bin/i386");
    let (linker, program) = (format!("{folder}/ld-linux.so.2"), format!("{folder}/which_node"));
    let words = [&linker, "--library-path", &folder, &program, &camera.path()];
    for who in BOTH {
        let (note, _) = without_shim(&camera, who, &["--shim", &shim], &words)?;
        ensure!(both_real() || note.contains("no 32-bit shim"), "{who:?}: {note}");
        let (note, _) = without_shim(&camera, who, &[], &words)?;
        ensure!(note.is_empty(), "{who:?}: {note}");
    }
    fs::remove_dir_all(only_64)?;
    Ok(())
}

fn endings() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    for who in BOTH {
        for script in [
            "exit 0",
            "exit 37",
            "exit 125",
            "kill -TERM $$",
            "kill -SEGV $$",
            "kill -PIPE $$",
        ] {
            let native = who.runs(&["sh", "-c", script])?.0;
            let served = who.runs_on_ours(&[], &["sh", "-c", script])?.0;
            ensure!(native == served, "{who:?}, {script}: {native} and {served}");
        }
        let served = who.runs_on_ours(&[], &["no-such-program"])?.0.code();
        ensure!(both_real() || served == Some(127), "{served:?}");
        let served = who.runs_on_ours(&[], &["/etc/passwd"])?.0.code();
        ensure!(both_real() || served == Some(126), "{served:?}");
    }
    if both_real() {
        return Ok(());
    }
    let usage = run_any("vidcompat", &["run", "--no-such-option", "true"], AT_ONCE)?.0;
    ensure!(usage.code() == Some(125), "{usage}");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut client = Client::start("vidcompat", &["run", "dqbuf_sleeper", &camera.path()])?;
        ensure!(client.line()? == "waiting", "it does not begin");
        // It is the very process that was started.
        client.until_asleep_in_dqbuf()?;
        client.signal(signal)?;
        let status = client.end(AT_ONCE)?;
        ensure!(status.signal() == Some(signal as i32), "{signal}: {status}");
    }
    Ok(())
}

/// As a terminal does it: to a program in a process group of its own.
fn job_control() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    let script = r#"set -m; "$@" >/tmp/vidcompat-run-out 2>&1 &
        for try in $(seq 100); do grep -qs waiting /tmp/vidcompat-run-out && break; sleep 0.05; done
        kill -TSTP %1; wait %1; echo "stopped $?"; kill -CONT %1; sleep 0.1
        kill -USR1 %1; sleep 0.1; kill -INT %1; wait %1; echo "ended $?"; rm /tmp/vidcompat-run-out"#;
    let sleeper = in_tree("dqbuf_sleeper");
    let path = camera.path();
    for who in BOTH {
        let native = who
            .runs(&["bash", "-c", script, "bash", &sleeper, "-r", &path])?
            .1;
        let before = [in_tree("vidcompat"), "run".to_owned()];
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let words = ["bash", "-c", script, "bash"];
        let served = match both_real() {
            true => native.clone(),
            false => {
                who.runs(&[&words[..], &before, &[&sleeper, "-r", &path]].concat())?
                    .1
            }
        };
        let says = |text: &str, what: &str| text.lines().any(|line| line == what);
        // 128 and the signal's number.
        ensure!(
            says(&native, "stopped 148") && says(&native, "ended 130"),
            "{native}"
        );
        ensure!(
            says(&served, "stopped 148") && says(&served, "ended 130"),
            "{who:?}: {served}"
        );
    }
    Ok(())
}

/// A number in `/proc/sys`, until it is dropped.
struct Sysctl {
    path: &'static str,
    before: String,
}

impl Sysctl {
    fn set(path: &'static str, value: &str) -> anyhow::Result<Self> {
        let before = fs::read_to_string(path)?;
        fs::write(path, value)?;
        Ok(Self { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.path, &self.before) {
            eprintln!("{} cannot be set back: {error}", self.path);
        }
    }
}

fn refusals() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    if both_real() {
        return Ok(());
    }
    let mark = "/tmp/vidcompat-run-was-run";
    let refused = |who: Who, options: &[&str], words: &[&str], why: &str| -> anyhow::Result<()> {
        let (status, said) = who.runs_on_ours(options, words)?;
        ensure!(
            status.code() == Some(125) && said.contains(why) && said.lines().count() == 1,
            "{who:?}, {words:?}: {status}: {said}"
        );
        ensure!(!fs::exists(mark)?, "{who:?}: the program was run");
        Ok(())
    };
    for sysctl in [
        "/proc/sys/kernel/unprivileged_userns_clone",
        "/proc/sys/user/max_user_namespaces",
    ] {
        let _off = Sysctl::set(sysctl, "0")?;
        let path = camera.path();
        refused(
            Who::User,
            &[],
            &["which_node-static", &path],
            "user namespace is refused",
        )?;
        refused(
            Who::User,
            &[],
            &["which_node-setuid", &path],
            "user namespace is refused",
        )?;
        refused(
            Who::User,
            &["--no-shim"],
            &["touch", mark],
            "user namespace is refused",
        )?;
        // Neither is needed for the shim, nor by root.
        without_shim(&camera, Who::User, &[], &["which_node", &path])?;
        without_shim(&camera, Who::Root, &[], &["which_node-static", &path])?;
    }
    refused(
        Who::User,
        &["--nodes", "shim"],
        &["which_node-static", "x"],
        "cannot be loaded",
    )?;
    drop(camera);
    daemon::stop_shared();
    for who in BOTH {
        refused(who, &[], &["touch", mark], "no node of vidcompatd's")?;
    }
    daemon::shared().map(drop)
}

fn everybody_else() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    if both_real() {
        return Ok(());
    }
    let before = (number(&camera.node.real())?, fs::read_to_string("/proc/mounts")?);
    for (option, words) in [
        ("auto", ["which_node", "cat"]),
        ("namespace", ["which_node", "cat"]),
    ] {
        for who in BOTH {
            let script = format!("{} {} && exec {}", in_tree(words[0]), camera.path(), words[1]);
            let arguments = ["run", "--nodes", option, "--", "sh", "-c", &script];
            let (user, group) = (USER.to_string(), VIDEO.to_string());
            let vidcompat = in_tree("vidcompat");
            let setpriv = [
                "--reuid", &user, "--regid", &user, "--groups", &group, "--", &vidcompat,
            ];
            let mut client = match who {
                Who::Root => Client::start(&vidcompat, &arguments)?,
                Who::User => Client::start("setpriv", &[&setpriv[..], &arguments].concat())?,
            };
            let ours = number(&camera.node.ours())?;
            let mut line = client.line()?;
            if line.starts_with("vidcompat: ") {
                line = client.line()?;
            }
            ensure!(line.starts_with(&format!("open: {ours} ")), "{who:?}: {line}");
            let meanwhile = (number(&camera.node.real())?, fs::read_to_string("/proc/mounts")?);
            ensure!(before == meanwhile, "{before:?}\n{meanwhile:?}");
            client.close_stdin();
            let status = client.end(AT_ONCE)?;
            ensure!(status.success(), "{status}");
        }
    }
    // One inside the other.
    let words = [&in_tree("vidcompat"), "run", "which_node", &camera.path()];
    let words = words.map(in_tree);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for who in BOTH {
        without_shim(&camera, who, &[], &words)?;
    }
    Ok(())
}

fn media() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    for entry in fs::read_dir("/dev")?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("media") {
            chown(entry.path(), None, Some(VIDEO))?;
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o660))?;
        }
    }
    // Time passes in the values of its controls.
    let steady = |text: &str| -> Vec<String> {
        let before = text.lines().take_while(|line| !line.starts_with("Priority"));
        before.map(str::to_owned).collect()
    };
    // Several vivids are one device to sysfs, and v4l2-ctl takes any one's media controller.
    for (node, is_alone) in [(&camera.node, false), (&named("vim2m")?, true)] {
        let path = node.real().display().to_string();
        for who in BOTH {
            let words = ["v4l2-ctl", "-d", &path, "--all"];
            let native = steady(&who.runs(&words)?.1);
            let served = steady(&who.runs_on_ours(&["--quiet"], &words)?.1);
            let has = |what: &str| native.iter().any(|line| line.starts_with(what));
            ensure!(has("Media Driver Info:"), "{native:?}");
            ensure!(
                !is_alone || (has("Interface Info:") && has("Entity Info:")),
                "{native:?}"
            );
            equal(&native, &served).with_context(|| format!("{who:?}, {path}"))?;
        }
    }
    Ok(())
}

fn environment() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    if both_real() {
        return Ok(());
    }
    let preload = "/nowhere/a.so:/nowhere/b.so";
    let set = format!("LD_PRELOAD={preload}");
    let said = |who: Who, options: &[&str]| -> anyhow::Result<Vec<String>> {
        let vidcompat = in_tree("vidcompat");
        let words = [&["env", &set, "A=b c", &vidcompat, "run"], options, &["env"]].concat();
        Ok(lines(&who.runs(&words)?.1))
    };
    let ours = format!("LD_PRELOAD={TREE}/$LIB/vidcompat/libvidcompat.so:{preload}");
    for who in BOTH {
        let has = |lines: &[String], line: &str| lines.iter().any(|there| there == line);
        let names = |lines: &[String], name: &str| lines.iter().any(|there| there.starts_with(name));
        let usual = said(who, &[])?;
        ensure!(has(&usual, "A=b c") && has(&usual, &ours), "{who:?}: {usual:?}");
        let pair = format!(
            "{}={}=",
            number(&camera.node.real())?,
            number(&camera.node.ours())?
        );
        ensure!(
            usual
                .iter()
                .any(|line| line.starts_with("VIDCOMPAT_NODES=") && line.contains(&pair)),
            "{usual:?}"
        );
        ensure!(!names(&usual, "VIDCOMPAT_ADOPT="), "{usual:?}");
        ensure!(
            has(&said(who, &["--no-adopt"])?, "VIDCOMPAT_ADOPT=0"),
            "--no-adopt"
        );
        let none = said(who, &["--no-shim"])?;
        ensure!(
            has(&none, &set) && !names(&none, "VIDCOMPAT_NODES="),
            "{who:?}: {none:?}"
        );
    }
    Ok(())
}

fn mmap() -> anyhow::Result<()> {
    let camera = Camera::new()?;
    let file = "/tmp/vidcompat-run-frame";
    let to = format!("--stream-to={file}");
    let frame = |who: Who, native: bool, path: &str| -> anyhow::Result<Vec<u8>> {
        drop(fs::remove_file(file));
        let words = ["v4l2-ctl", "-d", path, "--stream-mmap=3", "--stream-count=2", &to];
        let (status, said) = match native {
            true => who.runs(&words)?,
            false => who.runs_on_ours(&[], &words)?,
        };
        ensure!(status.success(), "{who:?}: {status}: {said}");
        fs::read(file).with_context(|| said)
    };
    let path = camera.path();
    // Nothing moves, and no text.
    run("v4l2-ctl", &["-d", &path, "-c", "osd_text_mode=2"], AT_ONCE)?;
    for who in BOTH {
        let native = frame(who, true, &path)?;
        ensure!(native.len() > 1000, "{} bytes", native.len());
        for path in [&path, LINK] {
            let served = frame(who, false, path)?;
            ensure!(
                native == served,
                "{who:?}, {path}: {} and {} bytes",
                native.len(),
                served.len()
            );
        }
    }
    Ok(())
}
