package main

import (
	"slices"
	"testing"
)

// Every pair of maps of a five-block volume over three places and "not allocated", against the answer block by block.
func TestDifferencesAreWhatIsNotInTheSamePlace(t *testing.T) {
	const blocks, block = 5, 4096
	var maps [][blocks]int64
	for n := range 4 * 4 * 4 * 4 * 4 {
		var one [blocks]int64
		for i := range one {
			one[i] = int64(n%4) * 100 * block // 0: not allocated
			if one[i] > 0 {
				one[i] += int64(i) * block // so that neighbours of one colour are neighbours on the disk
			}
			n /= 4
		}
		maps = append(maps, one)
	}
	extentsOf := func(one [blocks]int64) (out []extent) {
		for i, place := range one {
			if last := len(out) - 1; place > 0 && last >= 0 && out[last].end() == int64(i)*block && out[last].place+out[last].size == place {
				out[last].size += block
			} else if place > 0 {
				out = append(out, extent{int64(i) * block, block, place})
			}
		}
		return out
	}
	for _, before := range maps {
		for _, after := range maps {
			var want []int64
			for i := range before {
				if before[i] != after[i] {
					want = append(want, int64(i))
				}
			}
			var got []int64
			for _, e := range merged(differences(extentsOf(before), extentsOf(after))) {
				for at := e.offset; at < e.end(); at += block {
					got = append(got, at/block)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("From %v to %v: blocks %v changed, but %v were told", before, after, want, got)
			}
		}
	}
}
