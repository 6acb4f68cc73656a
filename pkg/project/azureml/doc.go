// Package azureml reads the configuration files of Azure Machine Learning's deployments to AKS,
// inferenceconfig.json, deploymentconfig.json and azureml_environment.json, as projects of Sluice. It is pure: contents
// of files in, a manifest out.
//
// Every field that the Azure CLI read is in Fields: it becomes a field of the manifest or an option of the deploy, or it
// is refused by name with the reason and the way out. A field that Azure ML ignored is an error here,
// with the nearest known one.
//
// Sources: the includes machine-learning-service-aks-deploy-config.md and machine-learning-service-inference-config.md of
// MicrosoftDocs/azure-docs, the article "reference-azure-machine-learning-cli", and what azureml-core's own
// parser reads beyond them.
package azureml
