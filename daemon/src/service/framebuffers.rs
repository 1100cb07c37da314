//! From what the operator has said to a framebuffer.

use std::sync::Arc;

use super::ServiceError;
use crate::backend::fbdev::RealFramebuffer;
use crate::backend::framebuffer::Framebuffer;
use crate::backend::kms;
use crate::devices::{FbSource, Own};
use crate::screen::{Screen, ScreenOptions};
use crate::session::DeviceOptions;

/// The framebuffer that `source` names. Nothing is shown yet.
pub(super) fn make(source: &FbSource, options: &DeviceOptions) -> Result<Arc<dyn Framebuffer>, ServiceError> {
    let failed = |error| ServiceError::Screen(source.name(), error);
    match source {
        FbSource::Real(path) => Ok(Arc::new(RealFramebuffer::new(path).map_err(failed)?)),
        FbSource::Own(own) => {
            let output = own
                .card
                .as_deref()
                .map(|card| kms::open(card, own.connector.as_deref()))
                .transpose()?;
            let screen = Screen::new(wishes(own), output).map_err(failed)?;
            if let Some((key, memory)) = screen.memory() {
                // A camera's buffer may be the screen.
                options.own.add_screen(key, &memory);
            }
            Ok(screen)
        }
    }
}

fn wishes(own: &Own) -> ScreenOptions {
    ScreenOptions {
        size: own.size,
        depth: own.depth,
        direct: own.direct,
        keep: own.keep,
    }
}
