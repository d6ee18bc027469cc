//! What the tests share: starting a server, speaking raw frames.
