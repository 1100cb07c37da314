//! `--check-config`: what would be served on this machine, and who has said so. Nothing is changed.

use std::fmt::{Display, Write};
use std::sync::Arc;

use super::plan::{Machine, Present};
use super::{PATIENCE, ServiceError};
use crate::cli::Options;
use crate::config::{Config, DEFAULT_PATH, Setting, Way};
use crate::devices::our_name;

/// The page.
///
/// # Errors
/// What is wrong with the configuration.
pub fn check(options: &Options) -> Result<String, ServiceError> {
    let mut options = options.clone();
    if options.devices.is_empty() && options.framebuffers.is_empty() {
        options.config.get_or_insert_with(|| DEFAULT_PATH.into());
    }
    let config = Config::of(&options)?;
    let mut machine = Machine::new(Arc::default());
    let look = machine.look(false, PATIENCE).map_err(ServiceError::System)?;
    let mut page = String::new();
    settings(&mut page, &config);
    page.push_str("devices:\n");
    if look.present.is_empty() && look.silent.is_empty() {
        page.push_str("  this machine has no V4L2 device now\n");
    }
    for present in &look.present {
        device(&mut page, &config, present);
    }
    for (found, why) in &look.silent {
        line(&mut page, format_args!("  {}: {why}", found.path.display()));
    }
    for entry in &config.devices {
        let fits = look.present.iter().any(|present| entry.value.fits(present));
        if !fits && !look.present.is_empty() {
            line(
                &mut page,
                format_args!(
                    "  (the entry of {} fits no device that is here now)",
                    entry.origin
                ),
            );
        }
    }
    if !config.framebuffers.is_empty() {
        page.push_str("framebuffers:\n");
    }
    for Setting { value, origin } in &config.framebuffers {
        line(&mut page, format_args!("  {} ({origin})", value.name()));
    }
    Ok(page)
}

fn settings(page: &mut String, config: &Config) {
    let mut said = |what: &str, value: &dyn Display, origin: &dyn Display| {
        line(page, format_args!("{what}: {value} ({origin})"));
    };
    let Setting { value, origin } = &config.control;
    said("control socket", &value.display(), origin);
    let Setting { value, origin } = &config.shim_socket;
    said("shim's socket", &value.display(), origin);
    let Setting { value, origin } = &config.memory_per_client;
    said("memory for each client", &size(*value), origin);
    let Setting { value, origin } = &config.memory_total;
    said("memory for all clients", &size(*value), origin);
    let Setting { value, origin } = &config.adopt;
    said("adoption", if *value { &"yes" } else { &"no" }, origin);
    for Setting { value, origin } in &config.imports {
        said("import", value, origin);
    }
}

fn device(page: &mut String, config: &Config, present: &Present) {
    let path = present.found.path.display();
    let names = format!("{}, {}", present.driver, present.card);
    match config.decide(present) {
        None => line(
            page,
            format_args!("  {path} ({names}): left alone, no entry fits"),
        ),
        Some(decision) => {
            let how = match (decision.way, our_name(&present.found)) {
                (Way::Off, _) => "left alone".to_owned(),
                (_, None) => "left alone, only the numbers 0 to 63 can be served".to_owned(),
                (Way::Side, Some(name)) => format!("side node /dev/{name}"),
                (Way::Takeover, Some(_)) => "taken over".to_owned(),
            };
            let mut how = how;
            if decision.way != Way::Off {
                if !decision.choice.adopt {
                    how.push_str(", no adoption");
                }
                if !decision.choice.dma_heap {
                    how.push_str(", no dma-heap");
                }
            }
            line(
                page,
                format_args!("  {path} ({names}): {how} ({})", decision.origin),
            );
        }
    }
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(page, "{text}");
}

/// As the options take it.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::size;
    use crate::cli::parse_size;

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for bytes in [0, 1, 1024, 3 << 20, 2 << 30, (1 << 30) + 1] {
            assert_eq!(parse_size(&size(bytes)), Ok(bytes));
        }
        assert_eq!(size(512 << 20), "512M");
    }
}
