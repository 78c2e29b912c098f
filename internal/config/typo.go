package config

import (
	"maps"
	"slices"
	"strings"
)

// maxTypos is how many letters may differ for a name to count as misspelt.
const maxTypos = 2

// names returns one property of every setting.
func names(of func(Setting) string) []string {
	list := make([]string, len(settings))
	for i, s := range settings {
		list[i] = of(s)
	}
	return list
}

// warnTypos tells of variables that look like misspelt settings. Others that
// begin with HATCH_ may belong to other programs and are left alone.
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

// nearest returns the known name that is closest to name, "" when none is close.
func nearest(name string, known []string) string {
	best, least := "", maxTypos+1
	for _, k := range known {
		if d := distance(name, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the letters to insert, delete or replace between a and b.
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
