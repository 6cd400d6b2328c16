//! A pre-fork RPC server for handlers that block, burn CPU, leak or crash.

mod sys;
