package main

import (
	"bufio"
	"cmp"
	"fmt"
	"html"
	"io"
	"time"
)

// The drawing's measures in pixels.
const (
	svgLabels = 260 // left of the bars
	svgBars   = 900
	svgLine   = 18
	svgMargin = 10
)

// colours of the bars by where they were measured.
var svgColours = map[string]string{onHost: "#4878a8", onGuest: "#d08030"}

// draw writes the timeline as an SVG: a bar for what took time, a tick for an
// instant.
func (t *timeline) draw(w io.Writer) error {
	rows := t.sorted()
	if len(rows) == 0 {
		return nil
	}
	zero, end := rows[0].Start, rows[0].End
	for _, r := range rows {
		if r.End.After(end) {
			end = r.End
		}
	}
	scale := float64(svgBars) / float64(max(end.Sub(zero), time.Millisecond))
	x := func(at time.Time) float64 { return svgLabels + float64(at.Sub(zero))*scale }
	height := svgLine*(len(rows)+1) + 2*svgMargin
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", svgLabels+svgBars+100, height)
	fmt.Fprintf(b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	step := gridStep(end.Sub(zero))
	for at := time.Duration(0); at <= end.Sub(zero); at += step {
		px := x(zero.Add(at))
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="%d" fill="#666">%v</text>`+"\n",
			px, svgMargin, px, height-svgMargin, px+2, svgMargin+10, at)
	}
	for i, r := range rows {
		y := svgMargin + svgLine*(i+1)
		label, took := r.Name, r.End.Sub(r.Start)
		if r.Err != "" {
			label += " (failed)"
		}
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, svgLabels-8, y+svgLine-6, html.EscapeString(label))
		fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`, x(r.Start), y+3, max(float64(took)*scale, 1), svgLine-6, cmp.Or(svgColours[r.Where], "#888"))
		if took > 0 {
			fmt.Fprintf(b, `<text x="%.1f" y="%d" fill="#444">%.1f ms</text>`, x(r.End)+4, y+svgLine-6, float64(took.Microseconds())/1000)
		}
		fmt.Fprintln(b)
	}
	fmt.Fprintln(b, "</svg>")
	return b.Flush()
}

// gridStep is a round time of which some ten fit.
func gridStep(total time.Duration) time.Duration {
	for step := time.Millisecond; ; step *= 10 {
		for _, n := range []time.Duration{1, 2, 5} {
			if n*step*10 >= total {
				return n * step
			}
		}
	}
}
