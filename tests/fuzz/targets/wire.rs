//! Request heads: routes, the proxy's target, headers, queries, and what they make the server write.
//! The claims themselves are in `server::fuzz`, next to what they are about.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzz::wire(data));
