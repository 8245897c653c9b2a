// Instruction sets: which ones were compiled, which one runs.
#pragma once
#include <string>
#include <vector>

namespace ifan {

enum class Isa { baseline, avx2, avx512 };

const char* name(Isa isa);
std::vector<Isa> compiled_isas();  // from slow to fast
bool supported(Isa isa);           // by the processor this runs on
bool has_bf16();                   // whether the kernels of namespace avx512bf16 are compiled, and run here
bool has_tiles();   // whether those of tiles_bf16.h run here: the processor has AMX, and the system lets us
bool uses_tiles();  // the same, unless they are set aside
void use_tiles(bool wanted);
Isa current_isa();  // the fastest compiled and supported one, unless set
void set_isa(Isa isa);
std::string processor();

}  // namespace ifan
