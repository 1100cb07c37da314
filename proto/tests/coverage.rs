//! The list of ioctls in ARCHITECTURE.md is made of the table, never by hand.
//!
//! `VIDCOMPAT_WRITE_DOCS=1 cargo test -p vidcompat-proto --test coverage` writes it anew.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::ioc::Command;
use vidcompat_proto::ioctl::fbdev::{self, Fbio};
use vidcompat_proto::ioctl::{Policy, Row, V4L2, lookup_compat};

const BEGIN: &str = "<!-- made by proto/tests/coverage.rs -->\n";
const END: &str = "<!-- end -->\n";

/// What becomes of an ioctl, for people.
fn policy(row: &Row) -> String {
    match row.policy {
        Policy::Pass => "passed".to_owned(),
        Policy::Privileged => "passed for CAP_SYS_ADMIN".to_owned(),
        Policy::Queue(_) => "translated: queue".to_owned(),
        Policy::Array => "translated: array".to_owned(),
        Policy::Window => "passed, with a window's clips".to_owned(),
        Policy::Controls => "translated: controls".to_owned(),
        Policy::Dqevent => "passed, waits here".to_owned(),
        Policy::Seek => "passed, waits in the driver".to_owned(),
        Policy::Expbuf => "with the shim: exported; else refused: EINVAL".to_owned(),
        Policy::Refuse(errno) => format!("refused: {errno}"),
    }
}

/// Sizes of the struct: 64-bit, then what an i386 client has, where that differs.
fn sizes(row: &Row) -> String {
    let native = row.command.size();
    let command = row.command;
    let other = |size: &u16| {
        let number = Command::new(command.direction(), command.magic(), command.number(), *size);
        usize::from(*size) != native
            && lookup_compat(ClientAbi::I386, number)
                .is_some_and(|(found, layout)| found == row && layout.is_some())
    };
    let compat: Vec<String> = (0..4096u16).filter(other).map(|size| size.to_string()).collect();
    match compat.is_empty() {
        true => native.to_string(),
        false => format!("{native} (i386: {})", compat.join(", ")),
    }
}

/// The same of a framebuffer's.
fn of_framebuffer(row: &fbdev::Row) -> &'static str {
    match row.op {
        Fbio::Cursor => "refused: EINVAL",
        Fbio::GetDmabuf => "with the shim: exported; else refused: ENOTTY",
        _ if row.is_drivers => "typed, the driver's own",
        _ => "typed",
    }
}

fn list() -> String {
    let mut text = String::from(BEGIN);
    text.push_str("| ioctl | number | bytes | what becomes of it |\n|---|---|---|---|\n");
    for row in V4L2 {
        let name = row.name.trim_start_matches("VIDIOC_");
        let number = row.command.number();
        writeln!(text, "| {name} | {number} | {} | {} |", sizes(row), policy(row)).expect("a string");
    }
    text.push_str("\nOf framebuffers; the number is the whole command:\n\n");
    text.push_str("| ioctl | number | bytes | what becomes of it |\n|---|---|---|---|\n");
    for row in fbdev::ROWS {
        let bytes = match (row.size, row.size_compat) {
            (native, compat) if native == compat => native.to_string(),
            (native, compat) => format!("{native} (i386: {compat})"),
        };
        let (name, number, policy) = (row.name, row.command.0, of_framebuffer(row));
        writeln!(text, "| {name} | {number:#x} | {bytes} | {policy} |").expect("a string");
    }
    text.push_str(END);
    text
}

#[test]
fn the_list_in_the_documentation_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let text = fs::read_to_string(&path).expect("ARCHITECTURE.md");
    let (before, rest) = text.split_once(BEGIN).expect("where the list begins");
    let (_, after) = rest.split_once(END).expect("where the list ends");
    let right = format!("{before}{}{after}", list());
    if std::env::var_os("VIDCOMPAT_WRITE_DOCS").is_some() {
        fs::write(&path, right).expect("ARCHITECTURE.md can be written");
    } else {
        assert!(
            text == right,
            "the table has changed: VIDCOMPAT_WRITE_DOCS=1 writes the list anew"
        );
    }
}
