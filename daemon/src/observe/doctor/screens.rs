//! Framebuffers: who has them, and what a pointer into one is worth to a video device.

use std::path::{Path, PathBuf};

use super::look::{cuse_nodes, device, names, number, owner, text};
use super::{Finding, Machine};
use crate::devices::{FB_FIRST_MINOR, FB_FIRST_OWN_MINOR, FB_MAJOR};
use crate::run::nodes::Number;
use crate::run::place::may_open;

pub(super) fn look(machine: &Machine) -> Vec<Finding> {
    let cuse = cuse_nodes();
    let at = |minor: u32| Number {
        major: FB_MAJOR,
        minor,
    };
    let mut findings = Vec::new();
    for name in names("/sys/class/graphics") {
        let Some(index) = name
            .strip_prefix("fb")
            .and_then(|digits| digits.parse::<u32>().ok())
        else {
            continue;
        };
        let folder = Path::new("/sys/class/graphics").join(&name);
        let driver = text(folder.join("name")).unwrap_or_else(|| "?".to_owned());
        let real = text(folder.join("dev")).and_then(|text| number(&text));
        let path = Path::new("/dev").join(&name);
        let ours = cuse
            .iter()
            .find(|(number, _)| *number == at(FB_FIRST_MINOR + index));
        let there = real.is_some() && device(&path) == real;
        findings.push(real_one(
            &path,
            &driver,
            there,
            ours.map(|(_, path)| path),
            machine.kernel,
        ));
    }
    let own = cuse.iter().filter(|(number, _)| {
        number.major == FB_MAJOR && (FB_FIRST_OWN_MINOR..FB_FIRST_OWN_MINOR + 64).contains(&number.minor)
    });
    findings.extend(own.map(|(_, path)| match may_open(path) {
        true => Finding::ok(path.display().to_string(), "a framebuffer of vidcompatd's own"),
        false => denied(path),
    }));
    findings
}

fn denied(path: &Path) -> Finding {
    let (owner, advice) = owner(path);
    Finding::problem(
        path.display().to_string(),
        format!("this user may not open it ({owner})"),
    )
    .advise(advice)
}

fn real_one(path: &Path, driver: &str, there: bool, ours: Option<&PathBuf>, kernel: (u32, u32)) -> Finding {
    let about = path.display().to_string();
    if !there && ours.is_none() {
        return Finding::problem(about, format!("{driver}: there is no node")).advise("make it (udev does)");
    }
    // videobuf2's get_vaddr_frames since 5.17, and writable_file_mapping_allowed (mm/gup.c) since 6.5; see `native`.
    let refused = match driver {
        "Virtual FB" => false,
        _ if driver.ends_with("drmfb") || driver.ends_with("drm") => kernel >= (6, 5),
        _ => true,
    };
    let pointers = match refused {
        true => "video devices take no pointers into it (EFAULT)",
        false => "video devices with USERPTR take pointers into it",
    };
    match ours {
        Some(node) if !may_open(node) => denied(node),
        Some(node) => Finding::ok(
            about,
            format!("{driver}: {pointers}, our nodes do; served as {}", node.display()),
        ),
        None if !may_open(path) => denied(path),
        None if refused => Finding::warning(about, format!("{driver}: {pointers}"))
            .advise("programs that capture into it use our nodes of the video devices"),
        None => Finding::ok(about, format!("{driver}: {pointers}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::real_one;
    use std::path::{Path, PathBuf};

    #[test]
    fn a_pointer_into_a_cards_framebuffer_is_worth_something_only_on_old_kernels() {
        let null = Path::new("/dev/null");
        let level = |driver, kernel| real_one(null, driver, true, None, kernel).level;
        assert_eq!(level("virtio_gpudrmfb", (6, 12)), Level::Warning);
        assert_eq!(level("virtio_gpudrmfb", (6, 1)), Level::Ok);
        assert_eq!(level("VESA VGA", (6, 1)), Level::Warning);
        assert_eq!(level("Virtual FB", (6, 12)), Level::Ok);
        let ours = PathBuf::from("/dev/null");
        assert_eq!(
            real_one(null, "VESA VGA", true, Some(&ours), (6, 12)).level,
            Level::Ok
        );
        assert_eq!(
            real_one(null, "VESA VGA", false, None, (6, 12)).level,
            Level::Problem
        );
    }
}
