package status

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"ephemeral_port_exporter/collector/advice"
	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
	"ephemeral_port_exporter/collector/snat"
)

// A Format is a form in which a Snapshot is drawn.
type Format string

// The formats.
const (
	HTML Format = "html"
	Text Format = "text"
	JSON Format = "json"
)

// A View says what of a Snapshot is drawn, and how.
type View struct {
	Format      Format
	Destination netip.AddrPort // only this one, or with port 0 only those of its address; all if it is not valid
	Port        uint16         // only who has this port, see Status.WritePort; 0 for all else
	WhatIf      advice.Change  // of the destinations, see whatIfTables; it needs Destination
	Paused      bool           // the page does not refresh itself
	ASCII       bool           // Text has no other characters; else those of the last 15 minutes are blocks
	Columns     int            // how many columns Text has, from 40 to 120; 0 for 120
}

// ParseView returns the View that a request asks for. The error tells the client what is valid.
func ParseView(r *http.Request) (View, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return View{}, fmt.Errorf("the query of the address is not valid: %w", err)
	}
	v := View{Format: acceptedFormat(r.Header.Values("Accept")), Paused: query.Has("pause")}
	switch format := Format(query.Get("format")); format {
	case "":
	case HTML, Text, JSON:
		v.Format = format
	default:
		return View{}, fmt.Errorf("format=%q is not valid: it must be %s, %s or %s", format, HTML, Text, JSON)
	}
	if destination := query.Get("destination"); destination != "" {
		if v.Destination, err = ParseDestination(destination); err != nil {
			return View{}, fmt.Errorf("destination=%q is not valid: it %w", destination, err)
		}
	}
	if change := query.Get("what-if"); change != "" {
		if v.WhatIf, err = parseChange(change); err != nil {
			return View{}, fmt.Errorf("what-if=%q is not valid: it %w", change, err)
		}
		if !v.Destination.IsValid() {
			return View{}, fmt.Errorf("what-if=%q is not valid: it needs destination=ADDRESS:PORT", change)
		}
	}
	if port := query.Get("port"); port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || v.Destination.IsValid() {
			return View{}, fmt.Errorf("port=%q is not valid: it must be a port from 1 to 65535, without destination=", port)
		}
		v.Port = uint16(n)
	}
	return v, nil
}

// ParseDestination returns the Destination of a View that is written as ADDRESS or ADDRESS:PORT. The error says what is valid.
func ParseDestination(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	d, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, errors.New("must be ADDRESS or ADDRESS:PORT, such as 10.0.0.2, 10.0.0.2:443 or [2001:db8::2]:443")
	}
	return netip.AddrPortFrom(d.Addr().Unmap(), d.Port()), nil
}

// destination writes the Destination as in the address of the view.
func (v View) destination() string {
	if v.Destination.Port() == 0 {
		return v.Destination.Addr().String()
	}
	return v.Destination.String()
}

// acceptedFormat returns the format for the values of an Accept header: Text unless HTML or JSON is
// named. Browsers name HTML, and curl names nothing.
func acceptedFormat(accept []string) Format {
	format, best := Text, 0.
	for item := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		mediaType, params, err := mime.ParseMediaType(item)
		if err != nil {
			continue
		}
		q := 1.
		if value, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(value, 64); err != nil {
				continue
			}
		}
		named := map[string]Format{"text/html": HTML, "text/plain": Text, "application/json": JSON}[mediaType]
		if named != "" && q > best {
			format, best = named, q
		}
	}
	return format
}

// has reports whether the view has a destination.
func (v View) has(destination netip.AddrPort) bool {
	if v.Destination.Port() == 0 {
		return !v.Destination.IsValid() || destination.Addr() == v.Destination.Addr()
	}
	return destination == v.Destination
}

// shows reports whether the view has a namespace: all of them, or those with its destination and those
// that may have it.
func (v View) shows(n *scan.Namespace) bool {
	return !v.Destination.IsValid() || n.TCP.Err != nil ||
		slices.ContainsFunc(n.TCP.Report.Destinations, func(d pool.Destination) bool { return v.has(d.Address) }) ||
		slices.ContainsFunc(n.NAT.Report.Listed(), func(d snat.Pool) bool { return v.has(d.Address) })
}

// URL returns the address of the view, without its host.
func (v View) URL() string {
	var query []string
	if v.Destination.IsValid() {
		query = append(query, "destination="+url.QueryEscape(v.destination()))
	}
	if v.WhatIf != (advice.Change{}) {
		query = append(query, "what-if="+writeChange(v.WhatIf))
	}
	if v.Port != 0 {
		query = append(query, fmt.Sprintf("port=%d", v.Port))
	}
	if v.Paused {
		query = append(query, "pause")
	}
	if v.Format != HTML {
		query = append(query, "format="+string(v.Format))
	}
	if len(query) == 0 {
		return "/"
	}
	return "/?" + strings.Join(query, "&")
}

// Toggled returns the address of the view that refreshes if v does not, and the reverse.
func (v View) Toggled() string {
	v.Paused = !v.Paused
	return v.URL()
}

// All returns the address of the view of all destinations.
func (v View) All() string { return View{Format: v.Format, Paused: v.Paused}.URL() }

// Narrow reports whether the view leaves out something of the host.
func (v View) Narrow() bool { return v.Destination.IsValid() || v.Port != 0 }

// As returns the address of the view in another format.
func (v View) As(f Format) string {
	return View{Format: f, Destination: v.Destination, WhatIf: v.WhatIf, Port: v.Port}.URL()
}
