package config

import (
	"maps"
	"slices"
	"strings"
)

// maxTypos is the maximum distance of a misspelt name from the right one, in letters.
const maxTypos = 2

// names returns one property of every setting.
func names(of func(Setting) string) []string {
	list := make([]string, len(settings))
	for i, s := range settings {
		list[i] = of(s)
	}
	return list
}

// warnTypos warns of variables whose names look like misspelt settings. It ignores others
// that begin with HATCH_, which may be for other programs.
func (l *loader) warnTypos() {
	known := append(names(func(s Setting) string { return s.Env }), fileEnv)
	for _, s := range settings {
		known = append(known, s.Aliases...)
	}
	for _, name := range slices.Sorted(maps.Keys(l.env)) {
		if strings.HasPrefix(name, "HATCH_") && !slices.Contains(known, name) {
			if guess := nearest(name, known); guess != "" {
				l.warn("%s is not a setting; did you mean %s?", name, guess)
			}
		}
	}
}

func didYouMean(name string, known []string) string {
	if guess := nearest(name, known); guess != "" {
		return "; did you mean " + guess + "?"
	}
	return ""
}

// nearest returns the known name with the smallest distance from name, or "" if that is
// above maxTypos.
func nearest(name string, known []string) string {
	best, least := "", maxTypos+1
	for _, k := range known {
		if d := distance(name, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance returns the number of letters to insert, delete or replace to turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
