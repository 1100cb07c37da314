//! Which real node has which node of ours: names, numbers, owner and mode, and taking a node down again.
//!
//! A *side node* leaves the real one where it is: `/dev/videoN` gets `/dev/video(64+N)`, 81:256+N, and the other
//! kinds of V4L2 nodes alike.

mod side_node;

pub(crate) use side_node::{FIRST_NUMBER, MAJOR, kinds};
pub use side_node::{SideNode, SideNodeError};
