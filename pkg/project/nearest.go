package project

import "strings"

// Nearest is the candidate that word was probably meant to be, or "" if none is near: at most a third of the letters
// differ.
func Nearest(word string, candidates []string) string {
	best, distance := nearest(word, candidates)
	if distance < 0 || 3*distance > max(len(word), len(best)) {
		return ""
	}
	return best
}

// nearest is the candidate with the smallest edit distance to word, ignoring case,
// and that distance; "" without candidates. The first of equals wins.
func nearest(word string, candidates []string) (string, int) {
	best, least := "", -1
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(word), strings.ToLower(c)); least < 0 || d < least {
			best, least = c, d
		}
	}
	return best, least
}

// editDistance is Damerau and Levenshtein's in its restricted form (optimal string
// alignment): insertions, deletions, replacements and swaps of neighbours count 1.
// Words longer than 64 bytes are cut, which bounds the work.
func editDistance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	before, last, now := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range now {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}
