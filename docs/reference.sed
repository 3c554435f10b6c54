# The headers' comments as Doxygen's: the block before a declaration, and the rest of a line behind one.
1s,^// ,/// \\file\n/// ,
/^\/\/ ----/d
/^ *#/!{
s,^\( *\)//$,\1///,
s,^\( *\)// ,\1/// ,
s,^\( *[^ /].*[;\,{]\) *// ,\1 ///< ,
s,^\( *[A-Z0-9_]* = [^ ,]*\) *// ,\1 ///< ,
s,^\( *uint32_t structSize;\)$,\1 ///< sizeof of this struct,
s,^\( *VKMQA_[A-Z_]*_MAX_ENUM = 0x7FFFFFFF\)$,\1 ///< makes the enum 32 bits wide,
}
