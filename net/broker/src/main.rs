//! The binary `ringmq`.
fn main() {}
