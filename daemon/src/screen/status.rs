//! What `vidcompat status` tells of a screen.

use super::desk::Desk;
use crate::observe::model;

impl Desk {
    /// Waits for no output.
    pub(super) fn status(&self) -> model::Framebuffer {
        let state = self.state();
        let (var, fix) = (
            state.rules.fbioget_vscreeninfo(),
            state.rules.fbioget_fscreeninfo(),
        );
        let view = state.rules.view();
        let id = fix.id.split(|byte| *byte == 0).next().unwrap_or_default();
        model::Framebuffer {
            driver: String::from_utf8_lossy(id).into_owned(),
            mode: Some(model::FbMode {
                width: var.xres,
                height: var.yres,
                virtual_width: var.xres_virtual,
                virtual_height: var.yres_virtual,
                depth: var.bits_per_pixel,
                format: Some(view.format.drm().to_string()),
                line_length: fix.line_length,
            }),
            memory: Some(
                if self.memory().is_direct() {
                    "direct"
                } else {
                    "shadow"
                }
                .to_owned(),
            ),
            memory_bytes: u64::from(fix.smem_len),
            output: self.is_presented().then(|| state.rules.shown_size()),
            converted: self.is_presented() && !view.direct,
            shown: state.seen.shown,
            hidden: state.seen.hidden.clone(),
            counters: state.seen.counters,
            ..model::Framebuffer::default()
        }
    }
}
