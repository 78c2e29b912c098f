package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// table is text in columns. Cells may come from guests and other users; they
// are cleaned when written.
type table struct {
	head []string
	rows [][]string
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// stateColumn is the column that gets colours.
const stateColumn = "STATE"

var stateColours = map[string]string{
	"running": "32", "done": "32", "ok": "32", "pass": "32",
	"starting": "33", "stopping": "33", "paused": "33", "snapshotted": "33", "degraded": "33", "warn": "33",
	"error": "31", "failed": "31", "fail": "31",
}

func (t table) write(w io.Writer, colour bool) error {
	rows := make([][]string, 0, len(t.rows)+1)
	rows = append(rows, t.head)
	for _, r := range t.rows {
		rows = append(rows, cleaned(r))
	}
	widths := columnWidths(rows)
	var b strings.Builder
	for i, r := range rows {
		var line strings.Builder
		for col, cell := range r {
			padding := strings.Repeat(" ", widths[col]-utf8.RuneCountInString(cell)+3)
			if code := stateColours[cell]; colour && i > 0 && t.head[col] == stateColumn && code != "" {
				cell = "\x1b[" + code + "m" + cell + "\x1b[0m"
			}
			line.WriteString(cell + padding)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func cleaned(cells []string) []string {
	out := make([]string, len(cells))
	for i, cell := range cells {
		if out[i] = clean(cell); out[i] == "" {
			out[i] = "-"
		}
	}
	return out
}

func columnWidths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, r := range rows {
		for col, cell := range r {
			widths[col] = max(widths[col], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

// age says how long ago t was, in its largest unit.
func (c *cli) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return spanText(c.now().Sub(t))
}

// spanText writes a time in its largest unit.
func spanText(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// mib writes a size that is given in MiB.
func mib(n int64) string {
	if n >= 1024 && n%1024 == 0 {
		return fmt.Sprintf("%dG", n/1024)
	}
	return fmt.Sprintf("%dM", n)
}
