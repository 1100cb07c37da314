//! Devices beyond the cameras: found by the name that their driver gives them, from modules that a test loads.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::run;
use crate::daemon::Daemon;
use crate::setup::both_real;

const MODPROBE: Duration = Duration::from_secs(30);

/// N of the `/dev/videoN` that is called `name`.
pub fn named(name: &str) -> anyhow::Result<u32> {
    let all = video_nodes()?;
    all.iter()
        .find_map(|(number, called)| (called == name).then_some(*number))
        .with_context(|| format!("no node is called {name}: {all:?}"))
}

/// Number and name of every real `/dev/videoN`.
pub fn video_nodes() -> anyhow::Result<Vec<(u32, String)>> {
    let mut nodes = vec![];
    for entry in fs::read_dir("/sys/class/video4linux")?.flatten() {
        let file = entry.file_name();
        let number = file
            .to_str()
            .and_then(|file| file.strip_prefix("video")?.parse().ok());
        if let Some(number) = number {
            let name = fs::read_to_string(entry.path().join("name"))?;
            nodes.push((number, name.trim_end().to_owned()));
        }
    }
    nodes.sort();
    Ok(nodes)
}

/// Loads a module with these parameters; one that is there is taken out first.
pub fn reload(module: &str, parameters: &[&str]) -> anyhow::Result<()> {
    if fs::exists(format!("/sys/module/{}", module.replace('-', "_")))? {
        run("modprobe", &["-r", module], MODPROBE)?;
    }
    run("modprobe", &[&[module], parameters].concat(), MODPROBE).map(drop)
}

/// A daemon for these nodes, or none where the real node takes the place of ours.
pub fn serve(numbers: &[u32]) -> anyhow::Result<Option<Daemon>> {
    if both_real() {
        return Ok(None);
    }
    let paths: Vec<String> = numbers
        .iter()
        .map(|number| format!("/dev/video{number}"))
        .collect();
    let arguments: Vec<&str> = paths.iter().flat_map(|path| ["--device", path]).collect();
    let daemon = Daemon::start(&arguments)?;
    ensure!(
        numbers
            .iter()
            .all(|number| crate::video::ours(*number).path().exists()),
        "not all nodes of {numbers:?} are there"
    );
    Ok(Some(daemon))
}

/// N of the first `/dev/videoN` whose name contains `part`.
pub fn containing(part: &str) -> anyhow::Result<u32> {
    let all = video_nodes()?;
    all.iter()
        .find_map(|(number, name)| name.contains(part).then_some(*number))
        .with_context(|| format!("no node's name contains {part}: {all:?}"))
}
