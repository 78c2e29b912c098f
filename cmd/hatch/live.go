package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"
)

// Escape sequences of a live table. It is drawn on the terminal's alternate
// screen, so that the old content comes back at the end.
const (
	liveBegin  = "\x1b[?1049h\x1b[?25l" // the alternate screen, without a cursor
	liveEnd    = "\x1b[?25h\x1b[?1049l"
	cursorHome = "\x1b[H"
	clearLine  = "\x1b[K" // from the cursor to the line's end
	clearBelow = "\x1b[J" // from the cursor to the screen's end
)

// live shows the table until ctx is done, which is not an error.
func (c topCommand) live(ctx context.Context, q usageQuery, rows []usageRow, interval time.Duration) error {
	resized, stop := c.resized()
	defer stop()
	fmt.Fprint(c.out, liveBegin)
	defer fmt.Fprint(c.out, liveEnd)
	update := time.NewTicker(interval)
	defer update.Stop()
	var lastErr error // of the last update; the rows before it stay
	for {
		c.draw(rows, lastErr)
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
			continue
		case <-update.C:
		}
		updated, err := q.rows(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if lastErr = err; err == nil {
			rows = updated
		}
	}
}

// draw draws the table over the last one, in one write. It stays within the
// terminal, so that nothing scrolls.
func (c topCommand) draw(rows []usageRow, err error) {
	var text bytes.Buffer
	_ = topTable(rows, c.format == formatWide).write(&text, c.colour()) // a bytes.Buffer does not fail
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	if len(rows) == 0 {
		lines = append(lines, "no VM is running; -a shows the others")
	}
	for _, r := range rows {
		if r.err != nil && err == nil {
			err = fmt.Errorf("%s: %w", displayName(r.vm), r.err)
		}
	}
	if err != nil {
		lines = append(lines, "", clean(err.Error()))
	}
	width, height := c.size()
	if len(lines) > height {
		more := len(lines) - height + 1
		lines = append(lines[:height-1], fmt.Sprintf("… %d more lines", more))
	}
	// Each line is cleared before it is written: after a line as wide as the
	// terminal, the cursor is on its last character.
	for i, line := range lines {
		lines[i] = clearLine + cut(line, width)
	}
	lines[len(lines)-1] = clearBelow + lines[len(lines)-1]
	fmt.Fprint(c.out, cursorHome+strings.Join(lines, "\n"))
}

// cut shortens a line to at most width characters. Escape sequences for colours
// do not count.
func cut(line string, width int) string {
	var b strings.Builder
	inEscape := false
	for _, r := range line {
		switch {
		case r == '\x1b':
			inEscape = true
		case inEscape:
			inEscape = r != 'm'
		case width > 0:
			width--
		default:
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
