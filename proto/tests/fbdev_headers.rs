//! The table of framebuffer ioctls and their structs against `linux/fb.h`: libclang, which bindgen loads, compiles
//! assertions for each architecture. The header is the system's.

use std::mem::{offset_of, size_of};

use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::fb::compat::{Cmap32, FixScreenInfo32};
use vidcompat_proto::abi::fb::{
    BLANK_POWERDOWN, Bitfield, Cmap, Con2FbMap, FixScreenInfo, VarScreenInfo, Vblank,
};
use vidcompat_proto::ioctl::fbdev::{Fbio, ROWS};

const PRELUDE: &str = r#"
#include <sys/ioctl.h>
#include <linux/fb.h>
#define SIZE(type, size) _Static_assert(sizeof(type) == size, "size of " #type)
#define FIELD(type, field, at) _Static_assert(__builtin_offsetof(type, field) == at, #field " in " #type)
#define NUMBER(name, number) _Static_assert(name == number, #name)
"#;

const NATIVE: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu"
} else {
    "x86_64-linux-gnu"
};

const TARGETS: [(&str, ClientAbi); 3] = [
    (NATIVE, ClientAbi::Native),
    ("i386-linux-gnu", ClientAbi::I386),
    ("arm-linux-gnueabihf", ClientAbi::Arm32),
];

/// Compiles `c` for a target.
fn compile(target: &str, file: &str, c: &str) -> Result<(), bindgen::BindgenError> {
    // Neither of the two files exists: libclang is handed their text. They could be anywhere.
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    bindgen::Builder::default()
        // glibc's list of missing functions is per word size, and only this machine's is installed.
        .header_contents(&here.join("gnu/stubs.h").to_string_lossy(), "")
        .header_contents(&here.join(file).to_string_lossy(), &format!("{PRELUDE}{c}"))
        .clang_args([
            format!("--target={target}"),
            format!("-I{}", here.display()),
            // The empty file that .cargo/config.toml has every bindgen include.
            format!("-I{}", env!("V4L2R_VIDEODEV2_H_PATH")),
            format!("-idirafter/usr/include/{}-linux-gnu", std::env::consts::ARCH),
        ])
        .allowlist_type("fb_cmap")
        .layout_tests(false)
        .formatter(bindgen::Formatter::None)
        .generate()
        .map(drop)
}

/// C that compiles only if the structs have these fields at these places: ours, and the header's.
macro_rules! structs {
    ($($ours:ty = $theirs:literal: $($field:ident = $name:literal),*;)*) => {
        [$(
            format!("SIZE({}, {});\n", $theirs, size_of::<$ours>()),
            $(format!("FIELD({}, {}, {});\n", $theirs, $name, offset_of!($ours, $field)),)*
        )*]
        .concat()
    };
}

fn of_every_size() -> String {
    structs! {
        Bitfield = "struct fb_bitfield": offset = "offset", length = "length", msb_right = "msb_right";
        VarScreenInfo = "struct fb_var_screeninfo": xres = "xres", yres = "yres", xres_virtual = "xres_virtual",
            yres_virtual = "yres_virtual", xoffset = "xoffset", yoffset = "yoffset", bits_per_pixel = "bits_per_pixel",
            grayscale = "grayscale", red = "red", green = "green", blue = "blue", transp = "transp", nonstd = "nonstd",
            activate = "activate", height = "height", width = "width", accel_flags = "accel_flags",
            pixclock = "pixclock", left_margin = "left_margin", right_margin = "right_margin",
            upper_margin = "upper_margin", lower_margin = "lower_margin", hsync_len = "hsync_len",
            vsync_len = "vsync_len", sync = "sync", vmode = "vmode", rotate = "rotate", colorspace = "colorspace",
            reserved = "reserved";
        Vblank = "struct fb_vblank": flags = "flags", count = "count", vcount = "vcount", hcount = "hcount",
            reserved = "reserved";
        Con2FbMap = "struct fb_con2fbmap": console = "console", framebuffer = "framebuffer";
    }
}

fn of_64_bits() -> String {
    structs! {
        FixScreenInfo = "struct fb_fix_screeninfo": id = "id", smem_start = "smem_start", smem_len = "smem_len",
            kind = "type", type_aux = "type_aux", visual = "visual", xpanstep = "xpanstep", ypanstep = "ypanstep",
            ywrapstep = "ywrapstep", line_length = "line_length", mmio_start = "mmio_start", mmio_len = "mmio_len",
            accel = "accel", capabilities = "capabilities", reserved = "reserved";
        Cmap = "struct fb_cmap": start = "start", len = "len", arrays = "red";
    }
}

fn of_32_bits() -> String {
    structs! {
        FixScreenInfo32 = "struct fb_fix_screeninfo": id = "id", smem_start = "smem_start", smem_len = "smem_len",
            kind = "type", type_aux = "type_aux", visual = "visual", xpanstep = "xpanstep", ypanstep = "ypanstep",
            ywrapstep = "ywrapstep", line_length = "line_length", mmio_start = "mmio_start", mmio_len = "mmio_len",
            accel = "accel", reserved = "capabilities", padding_end = "reserved[1]";
        Cmap32 = "struct fb_cmap": start = "start", len = "len", arrays = "red";
    }
}

/// The struct of an ioctl, as C names it.
const fn struct_of(op: Fbio) -> Option<&'static str> {
    match op {
        Fbio::GetVscreeninfo | Fbio::PutVscreeninfo | Fbio::PanDisplay => Some("struct fb_var_screeninfo"),
        Fbio::GetFscreeninfo => Some("struct fb_fix_screeninfo"),
        Fbio::GetCmap | Fbio::PutCmap => Some("struct fb_cmap"),
        Fbio::GetCon2fbmap | Fbio::PutCon2fbmap => Some("struct fb_con2fbmap"),
        Fbio::GetVblank => Some("struct fb_vblank"),
        Fbio::Waitforvsync => Some("__u32"),
        Fbio::Cursor | Fbio::Blank | Fbio::GetDmabuf => None,
    }
}

fn table(abi: ClientAbi) -> String {
    let mut c = format!("NUMBER(FB_BLANK_POWERDOWN, {BLANK_POWERDOWN});\n");
    for row in ROWS {
        // It is in no header.
        if row.op == Fbio::GetDmabuf {
            continue;
        }
        let command = if abi == ClientAbi::Native {
            Some(row.command)
        } else {
            row.command_compat
        };
        if let Some(command) = command {
            c += &format!("NUMBER({}, {:#x});\n", row.name, command.0);
        }
        if let Some(name) = struct_of(row.op) {
            c += &format!("SIZE({name}, {});\n", row.size_for(abi));
        }
    }
    c
}

#[test]
fn the_table_and_the_structs_are_those_of_the_header() {
    for (target, abi) in TARGETS {
        let of_its_size = if abi == ClientAbi::Native {
            of_64_bits()
        } else {
            of_32_bits()
        };
        let c = table(abi) + &of_every_size() + &of_its_size;
        compile(target, "fbdev.h", &c).unwrap_or_else(|error| panic!("{target}: {error}"));
    }
}

#[test]
fn what_is_wrong_does_not_compile() {
    let right = table(ClientAbi::Native) + &of_64_bits();
    compile(NATIVE, "fbdev.h", &right).expect("the right table compiles");
    for (from, to) in [
        ("NUMBER(FBIOGETCMAP, 0x4604)", "NUMBER(FBIOGETCMAP, 0x4605)"),
        ("SIZE(struct fb_cmap, 40)", "SIZE(struct fb_cmap, 24)"),
        ("smem_len, 24)", "smem_len, 20)"),
    ] {
        assert!(right.contains(from), "{from}");
        let error = compile(NATIVE, "wrong_on_purpose.h", &right.replace(from, to)).expect_err(to);
        assert!(
            matches!(error, bindgen::BindgenError::ClangDiagnostic(_)),
            "{to}: {error}"
        );
    }
}
