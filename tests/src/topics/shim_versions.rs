use crate::setup::Test;
pub const TESTS: &[(&str, Test)] = &[];
