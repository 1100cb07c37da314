//! The tables against the real headers: libclang, which bindgen loads, compiles assertions made of the tables for each
//! architecture and each size of time. No compiler for them is needed, only Debian's `libclang1` and `libc6-dev`.
//!
//! `linux/videodev2.h` is the one of `target/kernel-headers` (see `tests/setup`), `struct timeval` and `timespec` are
//! glibc's own.

use super::piece::Piece;
use super::{ClientAbi, Layout, layouts};
use crate::ioctl::{V4L2, lookup_compat};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// What a program was compiled for.
#[derive(Clone, Copy, Debug)]
struct Target {
    abi: ClientAbi,
    triple: &'static str,
    time64: bool,
}

const fn target(abi: ClientAbi, triple: &'static str, time64: bool) -> Target {
    Target { abi, triple, time64 }
}

const CLIENTS: &[Target] = &[
    target(ClientAbi::I386, "i386-linux-gnu", false),
    target(ClientAbi::I386, "i386-linux-gnu", true),
    target(ClientAbi::Arm32, "arm-linux-gnueabihf", false),
    target(ClientAbi::Arm32, "arm-linux-gnueabihf", true),
];

/// This machine, whose libc headers are the ones that are installed. They serve every 32-bit target, too.
const NATIVE: Target = target(
    ClientAbi::Native,
    if cfg!(target_arch = "aarch64") {
        "aarch64-linux-gnu"
    } else {
        "x86_64-linux-gnu"
    },
    true,
);

impl Target {
    /// The layout of ioctl `number` for this target. Two of them are for the two sizes of time, in that order.
    fn layout(self, number: u8) -> Option<&'static Layout> {
        let of_time = usize::from(self.time64 && is_timed(number));
        layouts(self.abi, number).get(of_time).copied()
    }

    /// Every layout of this target, by the name of its struct.
    fn layouts(self) -> BTreeMap<&'static str, &'static Layout> {
        (0..=255)
            .filter_map(|number| self.layout(number))
            .flat_map(|layout| [Some(layout), layout.element()])
            .flatten()
            .map(|layout| (layout.name, layout))
            .collect()
    }
}

/// Does the struct of this ioctl hold a time?
fn is_timed(number: u8) -> bool {
    matches!(number, 9 | 15 | 17 | 89 | 93)
}

/// A field: its name in C, its offset and its size.
type Field = (String, usize, usize);

/// Every field of `layout` in the 32-bit struct or in the 64-bit one, the union as a whole.
fn fields(layout: &Layout, compat: bool) -> Vec<Field> {
    let mut fields = places(layout.pieces, "", 0, compat);
    if let Some(union) = layout.union {
        let start = if compat { union.start.0 } else { union.start.1 };
        fields.push((union.field.to_owned(), start, union.len));
        fields.sort_by_key(|(_, offset, _)| *offset);
    }
    fields
}

/// The fields of the members of the union.
fn members(layout: &Layout, compat: bool) -> Vec<Field> {
    let Some(union) = layout.union else {
        return Vec::new();
    };
    let start = if compat { union.start.0 } else { union.start.1 };
    let prefix = format!("{}.", union.field);
    let members = union.members.iter();
    members
        .flat_map(|member| places(member.pieces, &prefix, start, compat))
        .collect()
}

fn places(pieces: &[Piece], prefix: &str, start: usize, compat: bool) -> Vec<Field> {
    let named = pieces.iter().filter(|piece| !piece.field.is_empty());
    named
        .map(|piece| {
            let (offset, len) = match compat {
                true => (piece.compat, piece.compat_len()),
                false => (piece.native, piece.native_len()),
            };
            (format!("{prefix}{}", piece.field), start + offset, len)
        })
        .collect()
}

/// The part of a field's name before the first dot.
fn outermost(field: &str) -> &str {
    field.split('.').next().unwrap_or(field)
}

/// C that compiles only if `layout` is what the headers say.
fn assertions(layout: &Layout, compat: bool) -> String {
    let (name, mut c) = (layout.name, String::new());
    let size = if compat {
        layout.compat_size
    } else {
        layout.native_size
    };
    c += &format!("SIZE(struct {name}, {size});\n");
    let fields = fields(layout, compat);
    for (field, offset, len) in fields.iter().chain(&members(layout, compat)) {
        c += &format!("FIELD(struct {name}, {field}, {offset}, {len});\n");
    }
    // Between one field and the next, and after the last, is only what aligns the next: less than its alignment.
    for pair in fields.windows(2) {
        let ((before, offset, len), (next, next_offset, _)) = (&pair[0], &pair[1]);
        let aligned = if outermost(before) == outermost(next) {
            next
        } else {
            outermost(next)
        };
        let gap = next_offset - (offset + len);
        c += &format!("PADDING(((struct {name} *)0)->{aligned}, {gap});\n");
    }
    let end = match fields.last() {
        // A pointer, and a member of a union that is as long in both.
        Some((string, ..)) if string == "string" => size,
        Some((_, offset, len)) => offset + len,
        None => 0,
    };
    c += &format!("PADDING(*(struct {name} *)0, {});\n", size - end);
    c
}

const PRELUDE: &str = r#"
#include <sys/time.h>
#include <linux/videodev2.h>
#define SIZE(type, size) _Static_assert(sizeof(type) == size, #type)
#define FIELD(type, field, at, len) \
    _Static_assert(__builtin_offsetof(type, field) == at, "offset of " #field " in " #type); \
    _Static_assert(sizeof(((type *)0)->field) == len, "size of " #field " in " #type)
#define PADDING(next, gap) _Static_assert(gap < _Alignof(__typeof__(next)), "more than padding before " #next)
#define NUMBER(name, number) _Static_assert(name == number, #name)
"#;

/// Collects the fields of every struct that the header has.
#[derive(Debug, Default)]
struct Fields(Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>);

impl bindgen::callbacks::ParseCallbacks for Fields {
    fn field_visibility(
        &self,
        info: bindgen::callbacks::FieldInfo<'_>,
    ) -> Option<bindgen::FieldVisibilityKind> {
        let mut types = self.0.lock().expect("nothing panics under the lock");
        let fields = types.entry(info.type_name.to_owned()).or_default();
        // What is a word of Rust has an underscore behind it.
        fields.insert(info.field_name.trim_end_matches('_').to_owned());
        None
    }
}

/// Compiles `c` for `target`: the fields of each struct it has seen, or what clang has to say.
fn compile(
    target: Target,
    file: &str,
    c: &str,
) -> Result<BTreeMap<String, BTreeSet<String>>, bindgen::BindgenError> {
    let fields = Fields::default();
    let seen = Arc::clone(&fields.0);
    // Neither of the two files exists: libclang is handed their text. They could be anywhere.
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let time = if target.time64 { 64 } else { 32 };
    bindgen::Builder::default()
        // glibc's list of missing functions is per word size, and only this machine's is installed.
        .header_contents(&here.join("gnu/stubs.h").to_string_lossy(), "")
        .header_contents(&here.join(file).to_string_lossy(), &format!("{PRELUDE}{c}"))
        .clang_arg(format!("--target={}", target.triple))
        .clang_args([
            "-D_FILE_OFFSET_BITS=64".to_owned(),
            format!("-D_TIME_BITS={time}"),
            format!("-I{}", here.display()),
            format!("-I{}", env!("V4L2R_VIDEODEV2_H_PATH")),
            format!("-idirafter/usr/include/{}-linux-gnu", std::env::consts::ARCH),
        ])
        .allowlist_type("v4l2_.*")
        .layout_tests(false)
        .formatter(bindgen::Formatter::None)
        .parse_callbacks(Box::new(fields))
        .generate()?;
    Ok(std::mem::take(
        &mut seen.lock().expect("nothing panics under the lock"),
    ))
}

#[test]
fn every_piece_lies_where_the_compiler_puts_its_field() {
    for target in CLIENTS {
        let layouts = target.layouts();
        let c: String = layouts.values().map(|layout| assertions(layout, true)).collect();
        compile(*target, "compat_layouts.h", &c).unwrap_or_else(|error| panic!("{target:?}: {error}"));
        let c: String = layouts.values().map(|layout| assertions(layout, false)).collect();
        compile(NATIVE, "compat_layouts.h", &c).unwrap_or_else(|error| panic!("{NATIVE:?}: {error}"));
    }
}

#[test]
fn the_number_of_every_row_is_the_headers_for_every_client() {
    for target in CLIENTS.iter().chain([&NATIVE]) {
        let mut c = String::new();
        for row in V4L2 {
            let number = row.command.number();
            let size = target
                .layout(number)
                .map_or(row.command.size(), Layout::compat_size);
            let size = u16::try_from(size).expect("14 bits");
            let command = crate::ioc::Command::new(row.command.direction(), b'V', number, size);
            c += &format!("NUMBER({}, {:#x});\n", row.name, command.0);
            let found = lookup_compat(target.abi, command);
            assert_eq!(found, Some((row, target.layout(number))), "{target:?}");
        }
        compile(*target, "compat_layouts.h", &c).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    }
}

/// A field of the header that is in no piece would be lost on the way without a word.
#[test]
fn every_field_of_the_header_is_in_the_table() {
    for target in CLIENTS {
        let types = compile(*target, "compat_layouts.h", "").expect("the headers alone compile");
        for layout in target.layouts().values() {
            let outer = names(&fields(layout, true), "");
            assert_fields(&outer, &types[layout.name], layout.name);
            let Some(union) = layout.union else { continue };
            let (members, of_union) = (members(layout, true), format!("{}.", union.field));
            let mut header = types["v4l2_format__bindgen_ty_1"].clone();
            assert!(header.remove("raw_data"), "what private types would hold");
            assert_fields(&names(&members, &of_union), &header, union.field);
            let window = names(&members, &format!("{of_union}win."));
            assert_fields(&window, &types["v4l2_window"], "v4l2_window");
        }
    }
}

/// The names that follow `prefix`, up to the next dot.
fn names(fields: &[Field], prefix: &str) -> BTreeSet<String> {
    let inner = fields.iter().filter_map(|(field, ..)| field.strip_prefix(prefix));
    inner.map(|field| outermost(field).to_owned()).collect()
}

/// A union without a name goes by the name of one of its members.
fn assert_fields(table: &BTreeSet<String>, header: &BTreeSet<String>, name: &str) {
    let (unnamed, named): (BTreeSet<_>, BTreeSet<_>) = header
        .iter()
        .cloned()
        .partition(|field| field.starts_with("__bindgen_anon"));
    assert!(
        named.is_subset(table),
        "{name}: {:?} in no piece",
        named.difference(table)
    );
    let others: Vec<_> = table.difference(&named).collect();
    assert_eq!(
        others.len(),
        unnamed.len(),
        "{name}: {others:?} against {unnamed:?}"
    );
}

/// The check itself: a table that is wrong in one place does not compile.
#[test]
fn a_wrong_table_is_found_out() {
    let layout = CLIENTS[0].layouts()["v4l2_buffer"];
    let right = assertions(layout, true);
    compile(CLIENTS[0], "compat_layouts.h", &right).expect("the right table compiles");
    let wrong = [
        ("sequence, 44, 4", "sequence, 40, 4"),
        ("SIZE(struct v4l2_buffer, 68)", "SIZE(struct v4l2_buffer, 76)"),
        ("timestamp.tv_usec, 24, 4", "timestamp.tv_usec, 24, 8"),
        ("->timecode, 0)", "->timecode, 4)"),
    ];
    for (from, to) in wrong {
        assert!(right.contains(from), "{from}");
        let error = compile(CLIENTS[0], "wrong_on_purpose.h", &right.replace(from, to)).expect_err(to);
        assert!(
            matches!(error, bindgen::BindgenError::ClangDiagnostic(_)),
            "{to}: {error}"
        );
    }
}
