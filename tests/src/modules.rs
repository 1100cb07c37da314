//! Kernel modules that a test loads with other parameters, or takes out under a daemon.

use std::fs;
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
        run("rmmod", &[module], MODPROBE)?;
    }
    Ok(())
}
