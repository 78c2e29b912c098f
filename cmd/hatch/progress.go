package main

import (
	"fmt"
	"time"
)

const spinnerStep = 100 * time.Millisecond

var spinnerFrames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// progress shows a spinner with a text on stderr if that is a terminal and the
// format is for people. The returned function stops it and clears the line.
func (p *printer) progress(what string) (end func()) {
	return p.progressOf(func() string { return what })
}

// progressOf is progress with a text that changes.
func (p *printer) progressOf(what func() string) (end func()) {
	if !p.errTTY || p.format.structured() {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		p.spin(what, stop)
	}()
	return func() { close(stop); <-stopped }
}

func (p *printer) spin(what func() string, stop <-chan struct{}) {
	began := p.now()
	tick := time.NewTicker(spinnerStep)
	defer tick.Stop()
	for i := 0; ; i++ {
		elapsed := p.now().Sub(began).Round(time.Second)
		fmt.Fprintf(p.err, "\r%s %s (%s) \x1b[K", spinnerFrames[i%len(spinnerFrames)], clean(what()), elapsed)
		select {
		case <-stop:
			fmt.Fprint(p.err, "\r\x1b[K")
			return
		case <-tick.C:
		}
	}
}
