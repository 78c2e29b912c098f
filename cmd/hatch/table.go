package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// table is text in columns. Cells may come from guests and other users; write
// cleans them.
type table struct {
	head []string
	rows [][]string

	noHead bool // head is not printed
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// stateColumn is the column that has colours.
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
	widths := make([]int, len(t.head))
	for _, r := range rows {
		for col, cell := range r {
			widths[col] = max(widths[col], utf8.RuneCountInString(cell))
		}
	}
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
		if i > 0 || !t.noHead {
			b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cleaned returns cells that are safe to print; empty ones become a hyphen.
func cleaned(cells []string) []string {
	out := make([]string, len(cells))
	for i, cell := range cells {
		if out[i] = clean(cell); out[i] == "" {
			out[i] = "-"
		}
	}
	return out
}

// spanText returns a duration in its largest unit.
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

// mib returns a size in MiB as text.
func mib(n int64) string {
	if n >= 1024 && n%1024 == 0 {
		return fmt.Sprintf("%dG", n/1024)
	}
	return fmt.Sprintf("%dM", n)
}

// bytesText returns a number of bytes in its largest unit, of 1024 each.
func bytesText[T int64 | uint64](n T) string {
	size, units := float64(n), "BKMGTPE"
	for size >= 1024 && len(units) > 1 {
		size, units = size/1024, units[1:]
	}
	if units[0] == 'B' || size >= 100 {
		return fmt.Sprintf("%.0f%c", size, units[0])
	}
	return fmt.Sprintf("%.1f%c", size, units[0])
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
