package azureml

import "reflect"

// Types are what the files are decoded into.
func Types() map[Kind]reflect.Type {
	return map[Kind]reflect.Type{
		Deployment: reflect.TypeFor[deployment](), Inference: reflect.TypeFor[inference](), Environment: reflect.TypeFor[environment](),
	}
}
