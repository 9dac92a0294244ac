#pragma once

namespace nibble {

/// Gives the system back what was freed. glibc keeps freed buffers below 32 MB for later ones, which do not fit the
/// holes where sizes alternate: after each of many blocks a little more stays resident than before it. Takes
/// milliseconds; any thread may call it.
void return_freed_memory();

}  // namespace nibble
