//go:build linux

package connectfail

import (
	"slices"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The states of a connect() that finds no port, from include/net/tcp_states.h.
const (
	tcpSynSent = 2
	tcpClose   = 7
)

// A slot consists of a pool and its failures. The pool is the two addresses, as in the layout, and
// the destination port. Port and failures are 64-bit numbers in the byte order of the host.
const (
	addressSize = 16

	slotSource   = 0
	slotDest     = slotSource + addressSize
	slotPort     = slotDest + addressSize
	slotFailures = slotPort + 8
	slotSize     = slotFailures + 8

	poolSize = slotFailures
)

// Offsets of the variables of the program from the frame pointer.
const (
	framePool  = -poolSize
	frameIndex = framePool - 8 // of a slot, 4 bytes
)

// Registers that survive a call.
const (
	regRecord = asm.R6
	regSlot   = asm.R7
)

// Labels of the program.
const (
	known  = "known"
	others = "others"
	count  = "count"
	end    = "end"
)

// instructions returns the program. It adds one to the slot of the pool of a failed connect(). The
// first failure in a pool takes a free slot. If none is left, the last slot counts it.
//
// The kernel runs the program at each change of state of each socket. So the checks that end it for
// most of these come first.
func instructions(l layout, m maps) asm.Instructions {
	lastSlot := int32(m.slots.MaxEntries() - 1)
	return slices.Concat(
		asm.Instructions{asm.Mov.Reg(regRecord, asm.R1)},
		endUnless(l.oldState, tcpSynSent),
		endUnless(l.newState, tcpClose),
		endUnless(l.sourcePort, 0),
		endUnless(l.protocol, unix.IPPROTO_TCP),

		copyAddress(l.source, framePool+slotSource),
		copyAddress(l.dest, framePool+slotDest),
		load(l.destPort),
		asm.Instructions{asm.StoreMem(asm.RFP, framePool+slotPort, asm.R2, asm.DWord)},

		call(asm.FnMapLookupElem, m.index.FD(), framePool),
		asm.Instructions{asm.JNE.Imm(asm.R0, 0, known)},

		// This is the first failure of its pool.
		call(asm.FnMapPopElem, m.free.FD(), frameIndex),
		asm.Instructions{asm.JNE.Imm(asm.R0, 0, others)},
		call(asm.FnMapLookupElem, m.slots.FD(), frameIndex),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end), // this never happens, but the verifier does not know it
			asm.Mov.Reg(regSlot, asm.R0),
		},
		copyPool(),
		call(asm.FnMapUpdateElem, m.index.FD(), framePool, frameIndex),
		asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R0),
			asm.Mov.Reg(asm.R0, regSlot),
			asm.JEq.Imm(asm.R1, 0, count),
		},

		// Another CPU has just added the pool: give the slot back.
		call(asm.FnMapPushElem, m.free.FD(), frameIndex),
		call(asm.FnMapLookupElem, m.index.FD(), framePool),
		asm.Instructions{asm.JNE.Imm(asm.R0, 0, known)},

		asm.Instructions{
			asm.Mov.Imm(asm.R2, lastSlot).WithSymbol(others),
			asm.StoreMem(asm.RFP, frameIndex, asm.R2, asm.Word),
		},
		call(asm.FnMapLookupElem, m.slots.FD(), frameIndex),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end), // never
			asm.Ja.Label(count),

			asm.LoadMem(asm.R2, asm.R0, 0, asm.Word).WithSymbol(known),
			asm.StoreMem(asm.RFP, frameIndex, asm.R2, asm.Word),
		},
		call(asm.FnMapLookupElem, m.slots.FD(), frameIndex),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end), // never

			asm.Mov.Imm(asm.R1, 1).WithSymbol(count),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, slotFailures),

			asm.Mov.Imm(asm.R0, 1).WithSymbol(end), // 0 would hide the event from perf(1)
			asm.Return(),
		},
	)
}

// load loads a field of the record into R2.
func load(f field) asm.Instructions {
	return asm.Instructions{asm.LoadMem(asm.R2, regRecord, int16(f.offset), width(f.size))}
}

// endUnless ends the program if a field has another value.
func endUnless(f field, value int32) asm.Instructions {
	return append(load(f), asm.JNE.Imm(asm.R2, value, end))
}

// copyAddress copies an address from the record to the frame, in the largest parts that its
// alignment allows. Where protocol has one byte, before Linux 5.6, the address is not aligned.
func copyAddress(from field, to int16) asm.Instructions {
	part := 8
	for from.offset%part != 0 {
		part /= 2
	}
	var program asm.Instructions
	for i := 0; i < addressSize; i += part {
		program = append(program, load(field{from.offset + i, part})...)
		program = append(program, asm.StoreMem(asm.RFP, to+int16(i), asm.R2, width(part)))
	}
	return program
}

// copyPool copies the pool from the frame to the slot.
func copyPool() asm.Instructions {
	var program asm.Instructions
	for i := int16(0); i < poolSize; i += 8 {
		program = append(program,
			asm.LoadMem(asm.R2, asm.RFP, framePool+i, asm.DWord),
			asm.StoreMem(regSlot, i, asm.R2, asm.DWord),
		)
	}
	return program
}

// call calls a helper with a map, pointers to variables in the frame, and the flags that the helper
// needs.
func call(helper asm.BuiltinFunc, fd int, variables ...int32) asm.Instructions {
	program := asm.Instructions{asm.LoadMapPtr(asm.R1, fd)}
	for i, v := range variables {
		to := asm.R2 + asm.Register(i)
		program = append(program, asm.Mov.Reg(to, asm.RFP), asm.Add.Imm(to, v))
	}
	switch helper {
	case asm.FnMapUpdateElem:
		program = append(program, asm.Mov.Imm(asm.R4, unix.BPF_NOEXIST))
	case asm.FnMapPushElem:
		program = append(program, asm.Mov.Imm(asm.R3, unix.BPF_ANY))
	}
	return append(program, helper.Call())
}

// width returns the size of a load or store of 1, 2, 4 or 8 bytes.
func width(bytes int) asm.Size {
	switch bytes {
	case 1:
		return asm.Byte
	case 2:
		return asm.Half
	case 4:
		return asm.Word
	default:
		return asm.DWord
	}
}
