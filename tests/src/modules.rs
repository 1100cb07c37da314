//! Kernel modules that a test loads with other parameters, or takes out under a daemon.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::client::run;
use crate::daemon;

const MODPROBE: Duration = Duration::from_secs(30);

/// Loads a module with these parameters; one that is there is taken out first. The shared daemon ends: the next
/// test gets one for the devices that are there then.
pub fn reload(module: &str, parameters: &[&str]) -> anyhow::Result<()> {
    daemon::stop_shared();
    remove(module)?;
    run("modprobe", &[&[module], parameters].concat(), MODPROBE).map(drop)
}

/// Takes a module out if it is there.
pub fn remove(module: &str) -> anyhow::Result<()> {
    if fs::exists(format!("/sys/module/{module}"))? {
        let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        if !first.contains_key(module) {
            first.insert(module.to_owned(), parameters(module)?);
        }
        run("rmmod", &[module], MODPROBE)?;
    }
    Ok(())
}

/// The parameters that each module had when it was first taken out.
static FIRST: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

/// Takes a module out, if it is in, and loads it with the parameters that the guest's start gave it.
pub fn again(module: &str) -> anyhow::Result<()> {
    daemon::stop_shared();
    remove(module)?;
    let first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    let parameters = first.get(module).cloned().unwrap_or_default();
    drop(first);
    let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
    run("modprobe", &[&[module], &parameters[..]].concat(), MODPROBE).map(drop)
}

/// The parameters of a module that is loaded, as for modprobe.
fn parameters(module: &str) -> anyhow::Result<Vec<String>> {
    let mut parameters = vec![];
    for entry in fs::read_dir(format!("/sys/module/{module}/parameters"))?.flatten() {
        let name = entry.file_name();
        // Some can only be written.
        if let (Some(name), Ok(value)) = (name.to_str(), fs::read_to_string(entry.path())) {
            parameters.push(format!("{name}={}", value.trim_end()));
        }
    }
    Ok(parameters)
}
