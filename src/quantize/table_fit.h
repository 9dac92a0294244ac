#pragma once

#include "quantize/residual.h"
#include "quantize/tile.h"

namespace nibble::quantize {

/// The code of a weight that is stored apart: it is exact, and no entry of the table stands for it.
inline constexpr float kSparseCode = -1;

/// The table entries c of least (w - P c)^T H (w - P c) for each row's codes P, in f16:
///   (P^T H P + ε) (c - c_old) = P^T R,   ε a ten-thousandth of the mean diagonal.
/// Entries that no code uses stay, and so does a whole row where rounding to f16 undoes the gain.
/// codes [in, rows]; tables [2^bits, rows]
void fit_tables_to_codes(const Hessian& hessian, const Tile& codes, const Residual& residual, Tile& tables);

}  // namespace nibble::quantize
