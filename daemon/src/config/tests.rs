use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::file::apply;
use super::{Config, Kinship, Origin, Way};
use crate::cli::Options;

struct Device(&'static str, &'static str, &'static str, bool);

impl Kinship for Device {
    fn path(&self) -> &Path {
        Path::new(self.0)
    }
    fn driver(&self) -> &str {
        self.1
    }
    fn card(&self) -> &str {
        self.2
    }
    fn is_hardware(&self) -> bool {
        self.3
    }
}

const CAMERA: Device = Device("/dev/video0", "uvcvideo", "HD Webcam: HD", true);
const LOOPBACK: Device = Device("/dev/video9", "v4l2 loopback", "Dummy", false);

fn read(text: &str) -> Result<Config, String> {
    let mut config = Config::built_in();
    let applied = apply(Path::new("/etc/a.toml"), text, &mut config);
    applied.map(|()| config).map_err(|error| error.to_string())
}

fn way(config: &Config, device: &Device) -> Option<(Way, String)> {
    let decision = config.decide(device)?;
    Some((decision.way, decision.origin.to_string()))
}

#[test]
fn nothing_said_is_a_side_node_for_all_hardware() {
    let config = read("").expect("an empty file");
    assert_eq!(way(&config, &CAMERA), Some((Way::Side, "built in".to_owned())));
    assert_eq!(way(&config, &LOOPBACK), None);
    assert!(config.framebuffers.is_empty() && !config.strict);
}

#[test]
fn the_last_entry_that_fits_counts_and_says_where_it_is() {
    let text = "\
[[device]]
all = true
way = \"off\"

[[device]]
driver = \"uvc*\"
exclude = [{ card = \"*IR*\" }]
way = \"takeover\"
adopt = false
[[device]]
path = \"/dev/video9\"
";
    let config = read(text).expect("a file");
    assert_eq!(
        way(&config, &CAMERA),
        Some((Way::Takeover, "/etc/a.toml:5".to_owned()))
    );
    assert!(!config.decide(&CAMERA).expect("it fits").choice.adopt);
    let infrared = Device("/dev/video2", "uvcvideo", "HD IR Camera", true);
    assert_eq!(
        way(&config, &infrared),
        Some((Way::Off, "/etc/a.toml:1".to_owned()))
    );
    assert_eq!(
        way(&config, &LOOPBACK),
        Some((Way::Side, "/etc/a.toml:10".to_owned()))
    );
}

#[test]
fn every_setting_is_read_with_its_line() {
    let text = "\
adopt = false
[socket]
control = \"none\"
shim = \"/run/x/shim.sock\"
[memory]
per-client = \"64M\"
total = \"1G\"
[import]
rules = [
  \"virtio_gpu:vmalloc=forbid\",
  \"memfd:*=allow\",
]
[[framebuffer]]
what = \"memory:64x48x32\"
";
    let config = read(text).expect("a file");
    let line = |origin: &Origin| match origin {
        Origin::File { line, .. } => *line,
        _ => 0,
    };
    assert_eq!((config.adopt.value, line(&config.adopt.origin)), (false, 1));
    assert_eq!((config.control(), line(&config.control.origin)), (None, 3));
    assert_eq!(config.shim_socket(), Some(Path::new("/run/x/shim.sock")));
    assert_eq!(
        (
            config.memory_per_client.value,
            line(&config.memory_per_client.origin)
        ),
        (64 << 20, 6)
    );
    assert_eq!(
        (config.memory_total.value, line(&config.memory_total.origin)),
        (1 << 30, 7)
    );
    let rules: Vec<_> = config
        .imports
        .iter()
        .map(|rule| (rule.value.to_string(), line(&rule.origin)))
        .collect();
    assert_eq!(
        rules,
        [
            ("virtio_gpu:vmalloc=forbid".to_owned(), 10),
            ("memfd:*=allow".to_owned(), 11)
        ]
    );
    assert_eq!(config.framebuffers[0].value.name(), "memory:64x48x32");
    assert_eq!(line(&config.framebuffers[0].origin), 14);
}

#[test]
fn a_mistake_names_file_line_and_key_in_one_sentence() {
    for (text, place, reason) in [
        (
            "[[device]]\nall = true\nway = \"sidee\"\n",
            "3: `device.way`: ",
            "`side`, `takeover`",
        ),
        (
            "[[device]]\nall = true\nweg = \"side\"\n",
            "3: `device.weg`: ",
            "unknown field",
        ),
        ("[[device]]\nway = \"side\"\n", "1: `device`: ", "which device?"),
        (
            "[[device]]\nall = true\ndriver = \"x\"\n",
            "1: `device`: ",
            "of their own",
        ),
        (
            "\n[[device]]\npath = \"video0\"\n",
            "2: `device`: ",
            "no path below /dev",
        ),
        (
            "[[device]]\nall = true\nexclude = [{}]\n",
            "1: `device`: ",
            "says which",
        ),
        (
            "[memory]\nper-client = \"12X\"\n",
            "2: `memory.per-client`: ",
            "no size such as",
        ),
        (
            "[memory]\ntotal = 12\n",
            "2: `memory.total`: ",
            "a size in quotes",
        ),
        (
            "[import]\nrules = [\n \"a:*=allow\",\n \"drm:vmalloc=allow\" ]\n",
            "4: `import.rules`: ",
            "kernel bug",
        ),
        (
            "[[framebuffer]]\nwhat = \"memory:8x8\"\n",
            "2: `framebuffer.what`: ",
            "no size",
        ),
        ("[[framebuffer]]\n", "1: `framebuffer`: ", "missing field `what`"),
        (
            "[socket]\nshim = \"shim.sock\"\n",
            "2: `socket.shim`: ",
            "must begin with `/`",
        ),
        ("adopt = 1\n", "1: `adopt`: ", "a boolean"),
        ("[sokket]\n", "1: `sokket`: ", "unknown field"),
        ("adopt = true\nadopt = false\n", "2: `adopt`: ", "duplicate"),
        ("[memory\n", "1: ", ""),
        ("[memory]\nper-client = \"64M\n", "2: `memory.per-client`: ", ""),
    ] {
        let error = read(text).expect_err(text);
        assert!(
            error.starts_with(&format!("/etc/a.toml:{place}"))
                && error.contains(reason)
                && !error.contains('\n'),
            "{text}: {error}"
        );
    }
}

#[test]
fn drop_ins_come_in_the_order_of_their_names_and_the_later_folder_replaces() {
    let root = std::env::temp_dir().join(format!("vidcompat-config-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    let folder = |name: &str| root.join(name);
    for (file, text) in [
        ("a/10-x.toml", ""),
        ("a/20-y.toml", ""),
        ("b/15-z.toml", ""),
        ("b/20-y.toml", ""),
        ("b/.hidden.toml", ""),
        ("b/30-w.toml~", ""),
    ] {
        fs::create_dir_all(root.join(file).parent().expect("a folder")).expect("a folder");
        fs::write(root.join(file), text).expect("a file");
    }
    let found = super::layers::drop_ins([folder("none"), folder("a"), folder("b")].into_iter());
    let found: Vec<PathBuf> = found.expect("folders").into_values().collect();
    let names = ["a/10-x.toml", "b/15-z.toml", "b/20-y.toml"];
    assert_eq!(found, names.map(|name| root.join(name)));

    // And a file with its drop-ins, and the command line over both.
    let main = root.join("main.toml");
    fs::write(&main, "[memory]\nper-client = \"1M\"\ntotal = \"5M\"\n").expect("a file");
    fs::create_dir(root.join("main.toml.d")).expect("a folder");
    fs::write(root.join("main.toml.d/1.toml"), "[memory]\nper-client = \"2M\"\n").expect("a file");
    let config = |more: &[&str]| {
        let path = main.display().to_string();
        let args = ["vidcompatd", "--config", &path]
            .into_iter()
            .chain(more.iter().copied());
        Config::of(&Options::try_parse_from(args).expect("options"))
    };
    let files = config(&[]).expect("files");
    assert_eq!(
        (files.memory_per_client.value, files.memory_total.value),
        (2 << 20, 5 << 20)
    );
    assert!(!files.strict && files.devices.len() == 1);
    let over = config(&["--memory-per-client", "3M", "--device", "/dev/video0"]).expect("files");
    assert_eq!(
        (over.memory_per_client.value, over.memory_total.value),
        (3 << 20, 5 << 20)
    );
    assert_eq!(over.memory_per_client.origin, Origin::CommandLine);
    assert!(over.strict && over.devices.len() == 1 && way(&over, &CAMERA).is_some());
    fs::write(root.join("main.toml.d/1.toml"), "[memory]\nper-klient = \"2M\"\n").expect("a file");
    let error = config(&[]).expect_err("a mistake").to_string();
    assert!(
        error.contains("main.toml.d/1.toml:2: `memory.per-klient`: "),
        "{error}"
    );
    fs::remove_dir_all(&root).expect("ours");
    assert!(
        config(&[])
            .expect_err("no file")
            .to_string()
            .contains("cannot be read")
    );
}

#[test]
fn without_config_no_file_is_read_and_only_what_is_given_is_served() {
    let options = ["vidcompatd", "--device", "/dev/video9", "--adopt", "false"];
    let config = Config::of(&Options::try_parse_from(options).expect("options")).expect("no file");
    assert_eq!(way(&config, &CAMERA), None);
    assert_eq!(
        way(&config, &LOOPBACK),
        Some((Way::Side, "command line".to_owned()))
    );
    assert!(!config.adopt.value);
}

fn of_options(more: &[&str]) -> Result<Config, clap::Error> {
    let args = ["vidcompatd", "--device", "/dev/video0"].iter().chain(more);
    Options::try_parse_from(args).map(|options| Config::of(&options).expect("no file"))
}

#[test]
fn the_sockets_have_places_and_can_be_left_out() {
    let default = of_options(&[]).expect("options");
    assert_eq!(default.control(), Some(Path::new("/run/vidcompat/control.sock")));
    assert_eq!(default.shim_socket(), Some(Path::new("/run/vidcompat/shim.sock")));
    let other = of_options(&["--control", "/run/a", "--shim-socket", "none"]).expect("options");
    assert_eq!(
        (other.control(), other.shim_socket()),
        (Some(Path::new("/run/a")), None)
    );
}

#[test]
fn the_shims_socket_is_one_that_every_program_can_reach() {
    let longest = format!("/run/{}", "x".repeat(102));
    let config = of_options(&["--shim-socket", &longest]).expect("107 bytes");
    assert_eq!(config.shim_socket(), Some(Path::new(&longest)));
    for (path, reason) in [
        (format!("{longest}x"), "107 bytes at most, and this has 108"),
        ("shim.sock".to_owned(), "must begin with `/`"),
        (String::new(), "must begin with `/`"),
    ] {
        let error = of_options(&["--shim-socket", &path])
            .expect_err(&path)
            .to_string();
        assert!(error.contains(reason), "{error}");
    }
}
