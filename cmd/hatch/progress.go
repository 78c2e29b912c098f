package main

import (
	"fmt"
	"time"
)

const spinnerStep = 100 * time.Millisecond

var spinnerFrames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// progress shows on a terminal's stderr that something takes time; elsewhere it
// is silent. The returned function ends it and wipes the line.
func (c *cli) progress(what string) (end func()) {
	return c.progressOf(func() string { return what })
}

// progressOf is progress with a text that changes.
func (c *cli) progressOf(what func() string) (end func()) {
	if !c.errTTY || c.format.structured() {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		c.spin(what, stop)
	}()
	return func() { close(stop); <-stopped }
}

func (c *cli) spin(what func() string, stop <-chan struct{}) {
	began := c.now()
	tick := time.NewTicker(spinnerStep)
	defer tick.Stop()
	for i := 0; ; i++ {
		took := c.now().Sub(began).Round(time.Second)
		fmt.Fprintf(c.err, "\r%s %s (%s) \x1b[K", spinnerFrames[i%len(spinnerFrames)], clean(what()), took)
		select {
		case <-stop:
			fmt.Fprint(c.err, "\r\x1b[K")
			return
		case <-tick.C:
		}
	}
}
