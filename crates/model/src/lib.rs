//! LTX-2.3, named as in the checkpoint.
