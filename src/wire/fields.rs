//! Header fields as HTTP and the content-length framing have them: `Name: value` on a line of its own.
