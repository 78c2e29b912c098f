package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"
)

// Escape sequences of a live table. It is drawn on the terminal's other screen,
// so that what was there before comes back.
const (
	liveBegin  = "\x1b[?1049h\x1b[?25l" // the other screen, without a cursor
	liveEnd    = "\x1b[?25h\x1b[?1049l"
	cursorHome = "\x1b[H"
	clearLine  = "\x1b[K" // from the cursor to the line's end
	clearBelow = "\x1b[J" // from the cursor to the screen's end
)

// topLive shows what VMs use until ctx is done, which is how it ends well.
func (c *cli) topLive(ctx context.Context, w watched, rows []usageRow, interval time.Duration) error {
	resized, stop := c.resized()
	defer stop()
	fmt.Fprint(c.out, liveBegin)
	defer fmt.Fprint(c.out, liveEnd)
	look := time.NewTicker(interval)
	defer look.Stop()
	var fault error // of the last look; what was seen before stays
	for {
		c.drawTop(rows, fault)
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
			continue
		case <-look.C:
		}
		seen, err := w.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if fault = err; err == nil {
			rows = seen
		}
	}
}

// drawTop draws the table over the one before, in one write. Nothing is drawn
// outside of the terminal, so that it never scrolls.
func (c *cli) drawTop(rows []usageRow, fault error) {
	var text bytes.Buffer
	_ = topTable(rows, c.format == formatWide).write(&text, c.colour()) // a bytes.Buffer does not fail
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	if len(rows) == 0 {
		lines = append(lines, "no VM runs; -a shows the others")
	}
	for _, r := range rows {
		if r.err != nil && fault == nil {
			fault = fmt.Errorf("%s: %w", displayName(r.vm), r.err)
		}
	}
	if fault != nil {
		lines = append(lines, "", clean(fault.Error()))
	}
	width, height := c.size()
	if len(lines) > height {
		more := len(lines) - height + 1
		lines = append(lines[:height-1], fmt.Sprintf("… %d lines more", more))
	}
	// Cleared before it is written: behind a line that is as wide as the
	// terminal, the cursor stands on its last character.
	for i, line := range lines {
		lines[i] = clearLine + cut(line, width)
	}
	lines[len(lines)-1] = clearBelow + lines[len(lines)-1]
	fmt.Fprint(c.out, cursorHome+strings.Join(lines, "\n"))
}

// cut shortens a line to at most width characters. Escape sequences for colours
// take no room and stay.
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
