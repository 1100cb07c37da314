//! The shim's socket: it is there before the first program can ask for it, and served when there is something to say.
//!
//! It outlives us in the store, so who connects while there is no daemon waits for the next one. And the next one answers
//! only when it has its files again: before, every token would be one that opens nothing.

use std::path::Path;
use std::sync::Arc;

use crate::claim::{Claim, ClaimError, Kind};
use crate::frontend::shim::{Server, Shims};
use crate::survive::{Inheritance, Store};

/// In the store.
const NAME: &str = "shim-socket";

/// The socket, not served yet.
pub(super) struct ShimSocket {
    claim: Claim,
    shims: Arc<Shims>,
}

/// What nodes tell shims, and the socket at `path`. The devices matter more: without one they are served all the same, as
/// to programs without shim.
pub(super) fn make(
    path: Option<&Path>,
    may_adopt: bool,
    store: &Arc<Store>,
    outlives_us: bool,
    inheritance: &mut Inheritance,
) -> (Arc<Shims>, Option<ShimSocket>) {
    let without = || (Shims::new(None, may_adopt), None);
    let Some(path) = path else {
        return without();
    };
    match claim(path, store, outlives_us, inheritance) {
        Ok(claim) => {
            let shims = Shims::new(Some(path.to_owned()), may_adopt);
            let socket = ShimSocket {
                claim,
                shims: Arc::clone(&shims),
            };
            (shims, Some(socket))
        }
        Err(error) => {
            tracing::warn!(
                "programs with the client shim are served as those without: {error}; --shim-socket gives this daemon a \
                 socket of its own"
            );
            without()
        }
    }
}

fn claim(
    path: &Path,
    store: &Arc<Store>,
    outlives_us: bool,
    inheritance: &mut Inheritance,
) -> Result<Claim, ClaimError> {
    if let Some(listener) = inheritance.remove(NAME) {
        let kept = store.kept(NAME);
        if let Some(claim) = Claim::again(path, Kind::Shim, listener) {
            kept.leave();
            return Ok(claim);
        }
        tracing::debug!("the shim's socket of the daemon before is of no use any more");
    }
    let mut claim = Claim::new(path, Kind::Shim)?;
    if outlives_us {
        match store.put(NAME, &claim) {
            Ok(kept) => {
                kept.leave();
                claim.stay();
            }
            Err(error) => tracing::warn!(%error, "the shim's socket does not outlive this daemon"),
        }
    }
    Ok(claim)
}

impl ShimSocket {
    /// From now on who has asked is answered.
    pub(super) fn serve(self) -> Option<Server> {
        let path = self.claim.path().to_owned();
        Server::start(self.claim, self.shims)
            .inspect_err(|error| {
                tracing::error!(
                    "programs with the client shim are served as those without: {} fails ({error})",
                    path.display()
                );
            })
            .ok()
    }
}
