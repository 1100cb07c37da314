//! Which real node has which node of ours: names, numbers, owner and mode, and taking a node down again.
//!
//! A *side node* leaves the real one where it is: `/dev/videoN` gets `/dev/video(64+N)`, 81:256+N, the other kinds of V4L2
//! nodes alike, and `/dev/fbN` gets `/dev/fb(64+N)`, 29:256+N. A framebuffer of our own where there is no real one is
//! `/dev/fbN`, 29:512+N. In a *takeover* ours has the name `/dev/videoN` (its number is that of a side node), and the real one is
//! `/dev/vidcompat/videoN`.

/// Where real nodes are while ours have their names.
pub const ASIDE: &str = "/dev/vidcompat";

mod access;
mod asking;
mod discovery;
mod fb_node;
mod fb_source;
mod journal;
mod node;
mod side_node;
mod takeover;
mod watch;

pub use access::carry;
pub use asking::{ASKING, Questions};
pub use discovery::{Found, Identity, discover};
pub use fb_node::{FB_FIRST_MINOR, FB_FIRST_OWN_MINOR, FB_MAJOR, FbNode, FbNodeError};
pub use fb_source::{FbSource, Own};
pub use node::{Node, NodeError};
pub(crate) use side_node::{FIRST_NUMBER, MAJOR, kinds};
pub use side_node::{SideNode, SideNodeError, names_of, our_name};
pub use takeover::{Takeover, TakeoverError, give_back_all};
pub use watch::Watcher;
