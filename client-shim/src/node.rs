//! Which fds are our nodes.
