# One token on a device of the library's own, as often as a call may fail on the way: the node says so, or it answers.
extends SceneTree


func _initialize() -> void:
	var attention := VkmqaAttention.new()
	var one := PackedFloat32Array()
	for i in 16:
		one.append(i / 4.0)
	var error := attention.create_own_device("auto", 2, 1, 16, 4)
	if error == OK:
		error = attention.append(one, one)
	if error == OK:
		error = attention.attend(one + one)
	if error == OK:
		error = attention.wait()
	if error:
		printerr("vkmqa: ", attention.get_message())
	elif attention.get_output() != one + one: # of one token the output is its value
		OS.crash("the output is wrong") # worse than any error
	attention.free()
	quit(error)
