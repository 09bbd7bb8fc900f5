// How OpenMP's threads wait for each other, and how soon the system lets them go on, while others use the cores too.
//
// A thread that waits spins for milliseconds, which is best where each has a core. Where another process keeps one of
// them off its core, the others spin away the time that would be given to it: two threads beside one busy process a
// core keep 0.2-0.3 of their quiet speed, not 0.5 (docs/log.md, 2026-11-29). There they should sleep at once, and be
// let back in as soon as they can go on.
#pragma once

namespace penstock {

// Before a team of `threads` works: four times a second, looks how long the team's threads have waited for a core since
// the last time, and has all OpenMP threads of this process sleep at once while that is much of their time. Does
// nothing where the user has said how threads wait (OMP_WAIT_POLICY, GOMP_SPINCOUNT, KMP_BLOCKTIME), or not on Linux.
void follow_load(int threads);

// Whether they sleep at once now.
bool waits_briefly();

}  // namespace penstock
